"""What stands between this machine and a store that is not a file, asked before anything is written."""

from urllib.parse import urlsplit

import requests
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from lenet5.errors import UserError
from lenet5.record.addresses import is_server, shown, store_uri
from lenet5.record.advice import CREDENTIALS, UNREACHABLE, advice, quiet_and_impatient, what_to_install

OLDEST = "3.0"
_NEWEST_QUESTION = "/api/2.0/mlflow/logged-models/search"  # all else that the record needs is older
_PATIENCE = 5  # seconds, as for all that MLflow asks of a server here
_DATABASES = ("postgresql", "mysql")
_PATIENT_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # that take the same setting


def refuse_unfit(uri: str) -> None:
    """Raise UserError with what a person can do where the store at ``uri`` cannot be used as it is."""
    obstacle = find_obstacle(uri)
    if obstacle:
        raise UserError(f"MLflow at {shown(uri)}: {obstacle}")


def find_obstacle(uri: str) -> str:
    """Why the store at ``uri`` cannot be used, and what to do; nothing where it can, or is of a kind not asked."""
    if is_server(uri):
        return _of_server(uri)
    if uri.startswith(_DATABASES):
        return _of_database(uri)
    return ""


def _of_database(uri: str) -> str:
    # MLflow itself tries ten times, for two minutes.
    try:
        url = sqlalchemy.make_url(uri)
        patience = {"connect_timeout": _PATIENCE} if url.get_driver_name() in _PATIENT_DRIVERS else {}
        with sqlalchemy.create_engine(url, connect_args=patience, poolclass=NullPool).connect():
            return ""
    except ImportError as error:
        return what_to_install(error)
    except SQLAlchemyError as error:
        return advice(str(error))
    except ValueError:
        return "its address cannot be read; write postgresql://user:password@host:port/database"


def _of_server(uri: str) -> str:
    question = {"experiment_ids": ["0"], "max_results": 1}
    try:
        response = http_request(
            get_default_host_creds(uri), _NEWEST_QUESTION, "POST", json=question, max_retries=0, timeout=_PATIENCE,
            raise_on_status=False, allow_redirects=False,
        )  # fmt: skip
    except MlflowException as error:
        return _of_connection(str(error))
    return _of_answer(response, uri)


def _of_connection(message: str) -> str:
    """What an exception of the libraries below means: they tell it apart by text alone."""
    if "WRONG_VERSION_NUMBER" in message or "RECORD_LAYER_FAILURE" in message or "PACKET_LENGTH" in message:
        return "does not speak TLS; begin its address with http://"
    if "certificate" in message.lower():
        return (
            "its certificate is not trusted here; name the file of its authority in MLFLOW_TRACKING_SERVER_CERT_PATH, "
            "or set MLFLOW_TRACKING_INSECURE_TLS=true where you trust the network"
        )
    if "ProxyError" in message or "Unable to connect to proxy" in message:
        return "the proxy of HTTP_PROXY or HTTPS_PROXY does not let this through; name the server in NO_PROXY"
    if "BadStatusLine" in message or "Connection aborted" in message:
        return "breaks off; does it want https://, or is another service at that port?"
    known = advice(message)
    return known if known == UNREACHABLE else f"{UNREACHABLE} ({known[:120]})"


def _of_answer(response: requests.Response, uri: str) -> str:
    status, text = response.status_code, response.text[:2000]
    if response.is_redirect or 300 <= status < 400:
        return _of_redirect(response.headers.get("Location", ""), uri)
    if "Invalid Host header" in text:
        return (
            f"does not go by this name; `mlflow server --allowed-hosts {_host(uri)}`, with the names it has besides, "
            "lets it; or use one of those"
        )
    if status == 401:
        return CREDENTIALS
    if status == 403:
        return "refuses access (403): this account may not read there, or something before the server does not let you"
    if status in (502, 503, 504):
        return f"something before the server answers {status}, for it does not run or is busy; start it, or try again"
    if status >= 500:
        return f"fails by itself (status {status}); its log says why"
    if status == 200 and _is_mlflow(response):
        return ""
    return _of_other(response, uri)


def _host(uri: str) -> str:
    """What a request to ``uri`` calls its server; MLflow compares it with the port, where it has one."""
    parts = urlsplit(uri)
    usual = {"http": 80, "https": 443}[parts.scheme.lower()]
    return str(parts.hostname) + (f":{parts.port}" if parts.port not in (None, usual) else "")


def _of_redirect(target: str, uri: str) -> str:
    there, here = urlsplit(target), urlsplit(uri)
    if there.hostname == here.hostname and there.scheme != here.scheme and there.path.endswith(_NEWEST_QUESTION):
        return f"has moved; begin its address with {there.scheme}://"
    return (
        "sends to another page, to sign in perhaps; ask who runs it for a token (MLFLOW_TRACKING_TOKEN) or for the "
        "address that programs use"
    )


def _of_other(response: requests.Response, uri: str) -> str:
    version = _version(uri)
    if version and version[0].isdigit():
        if _older(version):
            return f"is MLflow {version}, and the record needs {OLDEST} or newer there; ask who runs it for an upgrade"
        return f"MLflow {version} refuses a question (status {response.status_code}: {advice(response.text)[:120]})"
    if "html" in response.headers.get("Content-Type", "") and response.status_code == 200:
        return (
            "answers with a page, not as MLflow does: a sign-in page (then MLFLOW_TRACKING_TOKEN, or USERNAME and "
            "PASSWORD, may help), or another service; check host, port and path"
        )
    return f"is no MLflow server (status {response.status_code}); check host, port and path"


def _is_mlflow(response: requests.Response) -> bool:
    try:
        return isinstance(response.json(), dict)
    except ValueError:
        return False


def _version(uri: str) -> str:
    """What the server says its version is; nothing where it does not."""
    try:
        response = http_request(
            get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=_PATIENCE, raise_on_status=False,
            allow_redirects=False,
        )  # fmt: skip
    except MlflowException:
        return ""
    found = response.text.strip()
    return found if response.status_code == 200 and len(found) < 40 and found.count(".") > 0 else ""


def _older(version: str) -> bool:
    return int(version.partition(".")[0]) < int(OLDEST.partition(".")[0])


def tell(uri: str) -> str:
    """A level and a text for `lenet5 doctor`, which asks in a process of its own."""
    quiet_and_impatient()
    obstacle = find_obstacle(uri)
    if obstacle:
        return f"problem {obstacle}"
    if is_server(uri):
        return f"ok answers, MLflow {_version(uri)}"
    return "ok answers" if uri.startswith(_DATABASES) else "note is of a kind that is not looked into from here"


if __name__ == "__main__":
    print(tell(store_uri()))
