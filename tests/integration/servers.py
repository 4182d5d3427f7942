"""Real servers on loopback, for as long as a test wants them."""

import http.server
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Project, wait_until

Respond = Callable[[http.server.BaseHTTPRequestHandler], None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:  # noqa: S310 - our own server
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def http_server(respond: Respond) -> Iterator[str]:
    """A web server that lets ``respond`` answer each request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        do_POST = do_PUT = do_GET  # noqa: N815 - the names http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def answer(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def mlflow_server(project: Project, folder: Path, port: int, backend: str | None = None) -> Iterator[str]:
    """A real `mlflow server`, which keeps its store in ``folder`` from one start to the next."""
    folder.mkdir(exist_ok=True)
    command = [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", backend or f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    log = folder / "log"
    with log.open("a") as output, project.started(*command, output=output) as process:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health") or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def postgresql(folder: Path, port: int) -> Iterator[str]:
    """A PostgreSQL with a database ``mlflow``, which it keeps in ``folder`` from one start to the next; yields its URI.

    Skips the test where it is not installed.
    """
    installed = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    initdb = next((path for path in installed if path), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed: `apt-get install postgresql`")
    # It refuses to run as root; Debian's package brings a user of its own.
    as_user = ["runuser", "--user", "postgres", "--"] if os.geteuid() == 0 else []
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    if as_user:
        shutil.chown(folder, "postgres")
    cluster = folder / "cluster"

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(Path(initdb).resolve().with_name(program)), *arguments]
        subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL)

    if new:
        run("initdb", "--pgdata", str(cluster), "--auth", "trust", "--username", "mlflow", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "start", "--wait", "--pgdata", str(cluster), "--log", str(folder / "log"), "--options", options)
    try:
        if new:
            run("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "mlflow", "mlflow")
        yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        run("pg_ctl", "stop", "--mode", "immediate", "--pgdata", str(cluster))
