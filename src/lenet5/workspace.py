"""The files a person edits and DVC keeps, and the workspace they belong to."""

import os
from pathlib import Path

PARAMS_FILE, PIPELINE_FILE, LOCK_FILE = Path("params.yaml"), Path("dvc.yaml"), Path("dvc.lock")

CHECKPOINTS, ATTEMPTS = Path(".lenet5/checkpoints"), Path(".lenet5/attempts")
"""In the main workspace, and not among the outs: DVC deletes those before it runs a stage again."""

_SQLITE = "sqlite:///"


def main_workspace() -> Path:
    """The workspace a person sees. DVC runs queued experiments in copies that it deletes."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def store_uri() -> str:
    """Where the record is: MLFLOW_TRACKING_URI, or ``mlflow.db``, as `mlflow ui` expects.

    The file of a relative SQLite URI is in the main workspace: a queued experiment's folder is deleted.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    if not uri.startswith(_SQLITE):
        return uri
    return f"{_SQLITE}{(main_workspace() / uri.removeprefix(_SQLITE)).as_posix()}"
