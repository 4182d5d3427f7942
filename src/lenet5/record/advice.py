"""What a person can do about what MLflow says, and how little of it he is shown and waits for."""

import logging
import os

from lenet5.record.addresses import without_secrets

_PACKAGES = {
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
"""What brings a module that is called otherwise, or needs more than itself."""

UNREACHABLE = "cannot be reached; start that server, or unset MLFLOW_TRACKING_URI to use mlflow.db"
CREDENTIALS = "refuses the credentials; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ..._TOKEN"

_KNOWN = {
    (
        "Max retries exceeded", "Connection refused", "Failed to connect", "timed out", "timeout expired",
        "No route to host", "Network is unreachable", "could not translate host name", "Name or service not known",
        "failed to resolve host", "Can't connect to", "Unknown server host",
    ): UNREACHABLE,
    ("error code 401", "password authentication failed", "Access denied for user", "no password supplied"): CREDENTIALS,
    ("error code 403",): "refuses access: this account may not do that there; ask who runs it",
    ("out-of-date database schema", "Can't locate revision"): (
        "the store was written by another MLflow version; copy it, then `mlflow db upgrade` with its address "
        "brings an older one up to date; for a newer one install the MLflow that made it"
    ),
    ("database or disk is full",): "its disk is full; make room",
    ("database is locked",): "another program holds it; end that, or try again",
    ("readonly database", "unable to open database file"): "you may not write there; ask its owner",
    ("Could not find a registered", "unsupported URI", "Can't load plugin"): (
        "no such kind of store; MLFLOW_TRACKING_URI must begin with http://, https://, sqlite:/// or postgresql://"
    ),
}  # fmt: skip


def advice(message: str) -> str:
    """What to do about MLflow's ``message``, or a driver's."""
    for signs, known in _KNOWN.items():
        if any(sign in message for sign in signs):
            return known
    return without_secrets(message.partition("\n")[0])


def what_to_install(error: ImportError) -> str:
    """Which package brings the module that MLflow or a driver could not load."""
    module = (error.name or "psycopg").partition(".")[0]  # which names nothing where it finds no libpq
    return f"cannot load {module}; `python -m pip install {_PACKAGES.get(module, module)}` brings it"


def quiet_and_impatient() -> None:
    """Set up MLflow's client for a person at a terminal."""
    # What a person can mend is said in one line, not in the log of a library and a library's library.
    for library in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # A person at a terminal waits for this: MLflow's own defaults retry a dead server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
