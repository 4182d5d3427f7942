import datetime
import http.server
import ipaddress
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow.server.security_utils import INVALID_HOST_MSG, is_allowed_host_header

from lenet5.errors import UserError
from lenet5.record.server import find_obstacle, refuse_unfit, tell

Answer = tuple[int, str, str] | tuple[int, str, str, str]
"""Status, type and text; for a redirect its target."""

JSON, HTML, TEXT = "application/json", "text/html", "text/plain"
MLFLOW = (200, JSON, "{}")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS", "SERVER_CERT_PATH", "URI")
    for name in (*(f"MLFLOW_TRACKING_{name}" for name in names), "HTTP_PROXY", "HTTPS_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@contextmanager
def server(
    answers: Callable[[http.server.BaseHTTPRequestHandler], Answer], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, kind, text, *target = answers(self)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            if target:
                self.send_header("Location", target[0])
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815 - the name http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:  # who does not trust a certificate hangs up
            pass

    with Quiet(("127.0.0.1", 0), Handler) as httpd:
        if context:
            httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


def old_mlflow(handler: http.server.BaseHTTPRequestHandler) -> Answer:
    return (200, HTML, "2.22.0") if handler.path == "/version" else (404, HTML, "<!doctype html><title>Not Found")


ANSWERS = {
    "a sign-in page": ((200, HTML, "<html>Sign in"), "MLFLOW_TRACKING_TOKEN"),
    "another service": ((404, HTML, "<html>Apache"), "is no MLflow server (status 404)"),
    "another service's JSON": ((404, JSON, '{"detail": "Not Found"}'), "is no MLflow server (status 404)"),
    "text": ((200, TEXT, "hello"), "check host, port and path"),
    "a list": ((200, JSON, "[]"), "check host, port and path"),
    "method not allowed": ((405, HTML, ""), "is no MLflow server (status 405)"),
    "a redirect to sign in": ((302, HTML, "", "https://login.example.org/?next=x"), "MLFLOW_TRACKING_TOKEN"),
    "another host name": ((403, TEXT, "Invalid Host header - possible DNS rebinding"), "--allowed-hosts 127.0.0.1:"),
    "no credentials": ((401, JSON, "{}"), "MLFLOW_TRACKING_PASSWORD"),
    "no access": ((403, HTML, "Forbidden"), "may not read there"),
    "a fault of its own": ((500, HTML, "Internal"), "its log says why"),
    "a proxy before nothing": ((502, HTML, "Bad Gateway"), "does not run or is busy"),
}


@pytest.mark.parametrize(("answer", "said"), ANSWERS.values(), ids=ANSWERS)
def test_what_answers_otherwise_than_mlflow_has_its_own_line(answer: Answer, said: str) -> None:
    with server(lambda _: answer) as uri:
        assert said in find_obstacle(uri)
        with pytest.raises(UserError) as raised:
            refuse_unfit(uri.replace("http://", "http://someone:sesame@"))
    assert said in str(raised.value)
    assert "sesame" not in str(raised.value)
    assert "password" not in said.lower() or answer[0] in (200, 302, 401)


def test_the_name_that_a_server_is_to_be_given_is_the_one_that_mlflow_compares() -> None:
    asked = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> Answer:
        asked.append(handler.headers["Host"])
        return 403, TEXT, INVALID_HOST_MSG

    with server(answer) as uri:
        given = find_obstacle(uri).split("--allowed-hosts ")[1].partition("`")[0]
    assert is_allowed_host_header([given], asked[0])


def test_mlflow_is_no_obstacle_and_an_older_one_is_named_before_anything_is_written() -> None:
    with server(lambda handler: (200, TEXT, "3.17.2") if handler.path == "/version" else MLFLOW) as uri:
        assert find_obstacle(uri) == ""
        assert tell(uri) == tell(uri.upper()) == "ok answers, MLflow 3.17.2"
    asked = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> Answer:
        asked.append(handler.path)
        return old_mlflow(handler)

    with server(answer) as uri:
        assert "is MLflow 2.22.0, and the record needs 3.0" in find_obstacle(uri)
    assert asked == ["/api/2.0/mlflow/logged-models/search", "/version"]


def test_who_has_moved_to_https_is_said_so() -> None:
    with server(lambda handler: (301, HTML, "", f"https://127.0.0.1{handler.path}")) as uri:
        assert "begin its address with https://" in find_obstacle(uri)


def test_the_question_carries_what_mlflow_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> Answer:
        return MLFLOW if handler.headers["Authorization"] == "Bearer a-token" else (401, JSON, "{}")

    with server(answer) as uri:
        assert "refuses the credentials" in find_obstacle(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
        assert find_obstacle(uri) == ""


@pytest.fixture
def self_signed(tmp_path: Path) -> Path:
    """The file of a key and a certificate for 127.0.0.1 that nobody else has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_a_certificate_that_is_not_trusted_is_said_and_each_setting_helps(
    self_signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed)
    with server(lambda _: MLFLOW, context) as uri:
        said = find_obstacle(uri)
        assert "its certificate is not trusted here" in said
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in said
        assert "MLFLOW_TRACKING_INSECURE_TLS=true" in said
        assert "https://" in find_obstacle(uri.replace("https:", "http:"))
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(self_signed))
        assert find_obstacle(uri) == ""
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        with pytest.warns(match="Unverified HTTPS"):
            assert find_obstacle(uri) == ""


def test_a_server_that_speaks_no_tls_is_said_so() -> None:
    with server(lambda _: MLFLOW) as uri:
        assert "begin its address with http://" in find_obstacle(uri.replace("http:", "https:"))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "uri",
    ["http://{}", "HTTPS://{}", "postgresql://someone:sesame@{}/mlflow", "http://no.such.host.invalid:5000"],
)
def test_what_cannot_be_reached_is_said_within_seconds(uri: str) -> None:
    since = time.monotonic()
    said = tell(uri.format(f"127.0.0.1:{closed_port()}"))
    assert time.monotonic() - since < 15
    assert said.startswith("problem cannot be reached; start that server")


def test_a_database_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lenet5.record.server._PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        since = time.monotonic()
        said = find_obstacle(f"postgresql://someone:sesame@127.0.0.1:{silent.getsockname()[1]}/mlflow")
        assert time.monotonic() - since < 15
    assert "cannot be reached" in said


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mysql+pymysql://someone:sesame@127.0.0.1/mlflow", "`python -m pip install pymysql`"),
        ("postgresql+nosuch://someone:sesame@127.0.0.1/mlflow", "no such kind of store"),
        ("postgresql://someone:sesame@127.0.0.1:port/mlflow", "cannot be read"),
    ],
)
def test_a_database_address_that_cannot_work_is_one_line(uri: str, said: str) -> None:
    assert said in find_obstacle(uri)
    assert "sesame" not in find_obstacle(uri)


@pytest.mark.parametrize("code", ["raise ImportError('no pq wrapper available.\\nAttempts made:')", "import psycopg.c"])
def test_a_driver_that_is_there_in_part_is_one_line_with_all_it_needs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psycopg.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "psycopg", raising=False)
    said = find_obstacle("postgresql+psycopg://someone:sesame@127.0.0.1/mlflow")
    assert said == "cannot load psycopg; `python -m pip install 'psycopg[binary]'` brings it"


def test_a_store_of_another_kind_is_left_to_mlflow() -> None:
    assert find_obstacle("databricks") == ""
    assert tell("databricks").startswith("note ")


def test_an_answer_that_is_no_json_is_never_ok() -> None:
    with server(lambda handler: (200, TEXT, "3.1.0") if handler.path == "/version" else (200, JSON, "{")) as uri:
        assert json.dumps(tell(uri)).startswith('"problem')
