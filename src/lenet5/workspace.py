"""The files a person edits and DVC keeps, and the workspace they belong to."""

import os
from pathlib import Path

PARAMS_FILE, PIPELINE_FILE, LOCK_FILE = Path("params.yaml"), Path("dvc.yaml"), Path("dvc.lock")

CHECKPOINTS, ATTEMPTS, LIBRARIES = Path(".lenet5/checkpoints"), Path(".lenet5/attempts"), Path(".lenet5/libraries")
SEEDS, SWEEPS = Path(".lenet5/seeds"), Path(".lenet5/sweeps")
"""In the main workspace, and not among the outs: DVC deletes those before it runs a stage again."""


def main_workspace() -> Path:
    """The workspace a person sees. DVC runs queued experiments in copies that it deletes."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())
