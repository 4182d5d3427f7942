"""The files a person edits and DVC keeps, and the workspace they belong to."""

import os
from pathlib import Path

PARAMS_FILE, PIPELINE_FILE, LOCK_FILE = Path("params.yaml"), Path("dvc.yaml"), Path("dvc.lock")

CHECKPOINTS, ATTEMPTS = Path(".lenet5/checkpoints"), Path(".lenet5/attempts")
"""In the main workspace, and not among the outs: DVC deletes those before it runs a stage again."""


def main_workspace() -> Path:
    """The workspace a person sees. DVC runs queued experiments in copies that it deletes."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def store_uri() -> str:
    """Where the record is: MLFLOW_TRACKING_URI, or ``mlflow.db`` of the main workspace, as `mlflow ui` expects."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(main_workspace() / 'mlflow.db').as_posix()}"
