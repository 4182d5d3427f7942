"""Where a training stands, kept so that whatever ends the process loses a few seconds at most."""

import hashlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lenet5.data.fashion_mnist import data_digest
from lenet5.errors import UserError
from lenet5.files import digest, remove_whole, write_bytes
from lenet5.params import Params, flat_params
from lenet5.training.device import card_facts
from lenet5.training.engine import EngineChoice

EVERY_SECONDS = 5.0
"""`make bench` measures what share of training that takes."""

_DIGEST_SIZE = hashlib.sha256().digest_size


def result_key(params: Params, pipeline: Path, device: torch.device, engine: EngineChoice) -> str:
    """Digest everything that decides what training produces: params, data, code, PyTorch, device, engine.

    Of a card these are its name, its capability and the versions of CUDA, cuDNN and Triton.
    """
    code = list(code_digests(pipeline).values())
    steps = [engine.name, str(engine.compiles)]
    cpu = torch.backends.cpu.get_cpu_capability()
    machine = [torch.__version__, str(device), *card_facts(device).items(), cpu, *steps]
    recipe = sorted(flat_params(params, "data", "model", "train").items())
    return digest(repr((recipe, data_digest(), code, machine)).encode())


def code_digests(pipeline: Path) -> dict[str, str]:
    """The files of code that decide what training produces, with their digests: ``train``'s deps in dvc.yaml.

    Raises UserError where it does not name them, or one is gone.
    """
    from lenet5.dialect import parse  # late: a machine that only measures has no YAML

    try:
        deps = parse(pipeline.read_bytes(), pipeline)["stages"]["train"]["deps"]
        return {dep: digest(Path(dep).read_bytes()) for dep in deps if dep.startswith(("src/", "stages/"))}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{pipeline}: no stage train with a list of deps; `git restore {pipeline}`") from None
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: not found, and what training gives depends on it; `git restore {error.filename}`, or "
            f"mend the deps of train in {pipeline}"
        ) from None


class Checkpoint:
    """One file, which is there whole or not at all, and is used only by the training it came from."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key[:32]}.pt"
        self._key = key
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state last saved, or None; says so in a line when there is a file that must not be used."""
        if not self._path.exists():
            return None
        content = self._path.read_bytes()
        payload = content[_DIGEST_SIZE:]
        if hashlib.sha256(payload).digest() != content[:_DIGEST_SIZE]:
            self._refuse("it is cut or damaged")
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
        if state["key"] != self._key:
            self._refuse("it is of other params, data or code")
            return None
        return state

    def save_if_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """Save ``state()`` when ``EVERY_SECONDS`` have passed; a full disk costs the checkpoint, not the training."""
        if time.monotonic() - self._saved < EVERY_SECONDS:
            return
        self._saved = time.monotonic()
        try:
            self.save(state())
        except OSError as error:
            print(f"{self._path}: no checkpoint this time, {error.strerror}", file=sys.stderr)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state that was saved."""
        buffer = io.BytesIO()
        torch.save({**state, "key": self._key}, buffer)
        payload = buffer.getvalue()
        write_bytes(self._path, hashlib.sha256(payload).digest() + payload)

    def remove(self) -> None:
        """Forget the training: it has finished."""
        remove_whole(self._path)

    def _refuse(self, reason: str) -> None:
        print(f"{self._path}: this checkpoint is not used, {reason}; training starts afresh", file=sys.stderr)
