"""A workspace that was copied or renamed: its record names files by absolute paths, which are then another's."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.request import url2pathname

_FILES = {
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Where MLflow keeps paths of artifacts."""


def follow_the_workspace(database: Path, root: Path) -> None:
    """Let the record in ``root``'s own ``database`` name the files in ``root``, wherever it was written.

    The first experiment with a folder of its own says where that was: MLflow's Default, or where `mlflow ui` made the
    database, whose Default is the server's, the next one. What is recorded from now on goes to ``root``. Files that
    are only at the earlier place were never here: they are another's, and are named as before.
    A database of another place than ``root/mlflow.db`` is somebody else's and stays.
    """
    if not is_elsewhere(database, root):
        return
    own = (root / "mlruns").as_uri()
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as record, record:
            earlier = earlier_folder(record, own)
            for table, column in (("experiments", "artifact_location"), *_columns()):
                for number, place in _places(record, table, column, earlier):
                    now = here(place, earlier, own)
                    if table == "experiments" or path_of(now).exists() or not path_of(place).exists():
                        record.execute(
                            f"UPDATE {table} SET {column} = ? WHERE rowid = ?",  # noqa: S608 - names of ours
                            (now, number),
                        )
    except sqlite3.Error:  # of another schema, or no record: MLflow says that better
        return


def is_elsewhere(database: Path, root: Path) -> bool:
    """Whether ``root``'s own ``database`` was written for another folder; this only reads, and takes no lock."""
    if database != root / "mlflow.db":
        return False
    own = (root / "mlruns").as_uri()
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as record:
            return earlier_folder(record, own) != own
    except sqlite3.Error:
        return False


def earlier_folder(record: sqlite3.Connection, own: str) -> str:
    """The folder of artifacts, as a URI, that the record was written for; ``own`` where it names none on this machine.

    Raises sqlite3.Error for what is no record.
    """
    row = record.execute(
        "SELECT artifact_location FROM experiments "
        "WHERE artifact_location LIKE 'file:%/mlruns/%' ORDER BY experiment_id LIMIT 1"
    ).fetchone()
    return str(row[0]).rpartition("/")[0] if row else own


def here(place: str, earlier: str, own: str) -> str:
    """What ``place`` in the folder ``earlier`` is called in the folder ``own``; other places are called as before."""
    return own + place.removeprefix(earlier) if place.startswith(f"{earlier}/") else place


def _columns() -> Iterator[tuple[str, str]]:
    return ((table, column) for table, columns in _FILES.items() for column in columns)


def _places(record: sqlite3.Connection, table: str, column: str, folder: str) -> list[tuple[int, str]]:
    """The rows whose ``column`` names something in ``folder``, each with its number."""
    found = record.execute(
        f"SELECT rowid, {column} FROM {table} WHERE substr({column}, 1, ?) = ?",  # noqa: S608 - names of ours
        (len(folder) + 1, f"{folder}/"),
    )
    return found.fetchall()


def path_of(uri: str) -> Path:
    """The path of a ``file:`` URI."""
    return Path(url2pathname(uri.removeprefix("file:").removeprefix("//")))
