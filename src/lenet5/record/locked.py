"""What dvc.lock says of the outs in this folder: the params they were made with, and the bytes they had."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from lenet5.dialect import read_yaml
from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.workspace import LOCK_FILE, PARAMS_FILE

_STAGES = ("kernel_check", "train", "evaluate", "export")


@dataclass(frozen=True)
class _Stage:
    """What a stage last ran with, and the MD5 of each file it left."""

    params: Mapping[str, Any]
    outs: Mapping[str, str | None]


def refuse_other_params(params: Params) -> None:
    """Raise UserError where a stage before ``register`` last ran with others than ``params``, or has not run."""
    stages, now = _stages(), params.model_dump(by_alias=True)
    for name in _STAGES:
        if name not in stages or any(now.get(section) != used for section, used in stages[name].params.items()):
            raise UserError(f"{PARAMS_FILE} has changed since {name} ran; `dvc repro` first")


def refuse_other_outs(paths: Sequence[Path]) -> None:
    """Raise UserError at the first of ``paths`` that is there and is not what a stage left."""
    left = {path: md5 for stage in _stages().values() for path, md5 in stage.outs.items()}
    for path in paths:
        if path.is_file() and _md5(path) != left.get(path.as_posix()):
            raise UserError(f"{path}: not what {LOCK_FILE} holds; `dvc checkout` brings that back, or `dvc repro`")


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _stages() -> dict[str, _Stage]:
    """Raises UserError where no stage has run, or dvc.lock is broken."""
    if not LOCK_FILE.is_file():
        raise UserError("the pipeline has not run here yet; `dvc repro`")
    try:
        return {
            name: _Stage(
                stage.get("params", {}).get(str(PARAMS_FILE), {}),
                {out["path"]: out.get("md5") for out in stage.get("outs", [])},
            )
            for name, stage in read_yaml(LOCK_FILE.read_text(encoding="utf-8"))["stages"].items()
        }
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{LOCK_FILE}: not a file DVC wrote; move it away, then `dvc repro` writes it anew") from None
