"""Addresses of stores: read, built from paths, and shown without their secrets. Knows nothing of MLflow."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from lenet5.errors import UserError, without_credentials
from lenet5.workspace import main_workspace

_VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = re.compile(r"sqlite(?:\+pysqlite)?://(?P<path>[^?]*)(?P<query>\?.*)?", re.DOTALL)
_FOLDERS_ALLOWED = "MLFLOW_ALLOW_FILE_STORE"
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SHORTEST_SECRET = 4  # a shorter one would be found in half the words of a message


def store_uri() -> str:
    """Where the record is, as MLflow takes it: MLFLOW_TRACKING_URI, or ``mlflow.db``, as `mlflow ui` expects.

    The file of a relative SQLite URI is in the main workspace: a queued experiment's folder is deleted.
    Raises UserError where MLFLOW_TRACKING_URI names no store that several processes can use.
    """
    given = os.environ.get(_VARIABLE, "")
    uri = given.strip() or "sqlite:///mlflow.db"
    if given and not given.strip():
        raise UserError(f"{_VARIABLE} is blank; unset it to use mlflow.db")
    if found := _SQLITE.fullmatch(uri):
        return sqlite_uri(_sqlite_path(found["path"]), found["query"] or "")
    scheme, separator, rest = uri.partition("://")
    if uri.lower().startswith("file:") or not (separator or uri.startswith("databricks")):
        return _folder_uri(uri)
    if scheme.lower() in ("http", "https"):
        _refuse_unquoted(rest)
    return uri


def is_server(uri: str) -> bool:
    """Whether a server of MLflow's is there, at which others may look."""
    return uri.lower().startswith(("http://", "https://"))


def sqlite_uri(file: Path, query: str = "") -> str:
    """The URI of a SQLite file, whatever its path holds; ``query`` begins with a question mark."""
    path = file.absolute().as_posix()
    quoted = path.replace("%", "%25").replace("?", "%3F")
    # Where a path needs quotes the driver is named, too: MLflow would take the quoted path of the short form for a
    # path, and make that folder.
    return f"sqlite{'' if quoted == path else '+pysqlite'}:///{quoted}{query}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI, as ``sqlite_uri`` gives it; None of any other."""
    found = _SQLITE.fullmatch(uri)
    return Path(unquote(found["path"].removeprefix("/"))) if found else None


def shown(uri: str) -> str:
    """A store's address for a person, without user, password, and what a driver takes in its query."""
    if "://" not in uri:
        return uri.rpartition("@")[2]
    return without_credentials(uri)


def without_secrets(text: str) -> str:
    """Take the secrets of the environment, and all that stands before an ``@`` in an address, out of ``text``."""
    for secret in sorted(_own_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"(\w://)\S*@", r"\1", text)


def _own_secrets() -> set[str]:
    """What a message may not hold: as it was written, and as a library reads it."""
    user, _, _ = os.environ.get(_VARIABLE, "").partition("://")[2].rpartition("@")
    parts = {user, user.partition(":")[2], *map(os.environ.get, _SECRETS)}
    written = {part for part in parts if part}
    known = written | {unquote(part) for part in written} | {quote(part, safe="") for part in written}
    return {part for part in known if len(part) >= _SHORTEST_SECRET}


def _sqlite_path(path: str) -> Path:
    """The file that SQLAlchemy opens for what stands between ``sqlite://`` and a question mark."""
    name = unquote(path.removeprefix("/"))
    if not path.startswith("/") or not name or name.startswith((":memory:", "file:")):
        raise UserError(
            f"{_VARIABLE}: this SQLite address names no file, and what is in memory ends with each process; "
            "write sqlite:///mlflow.db"
        )
    return main_workspace().absolute() / name


def _folder_uri(uri: str) -> str:
    """The URI of a store that is a folder. Raises UserError where MLflow would not take one."""
    if os.environ.get(_FOLDERS_ALLOWED, "").lower() not in ("true", "1"):
        raise UserError(
            f"{_VARIABLE}: {shown(uri)} is a folder, and MLflow keeps records in databases now; unset it to use "
            f"mlflow.db, or begin it with sqlite:///, http://, https:// or postgresql:// ({_FOLDERS_ALLOWED}=true "
            "still allows a folder)"
        )
    path = url2pathname(re.sub("^file:(//(localhost)?(?=/))?", "", uri, flags=re.IGNORECASE))
    return (main_workspace().absolute() / path).as_uri()


def _refuse_unquoted(rest: str) -> None:
    """Raise UserError where user and password of a server hold what ends them for every library."""
    server = re.split(r"[/?#\\]", rest)[0]
    if "@" in rest.removeprefix(server):
        raise UserError(
            f"{_VARIABLE}: it has an @ after a /, ?, # or \\; quote those of a password (%2F, %3F, %23, %5C), "
            "or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    try:
        urlsplit(f"//{server}").port  # noqa: B018 - reading it is the check
    except ValueError:
        raise UserError(
            f"{_VARIABLE}: its server cannot be read; write https://host:port, and [, ] or : of a password as "
            "%5B, %5D, %3A"
        ) from None
