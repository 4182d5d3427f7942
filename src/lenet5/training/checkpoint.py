"""Where a training stands, kept so that whatever ends the process loses a few seconds at most."""

import hashlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from lenet5.engine import EngineChoice
from lenet5.files import digest, write_bytes
from lenet5.lineage import data_digest
from lenet5.params import Params
from lenet5.record import flat_params

EVERY_SECONDS = 5.0
"""`make bench` measures what share of training that takes."""

_DIGEST_SIZE = hashlib.sha256().digest_size


def result_key(params: Params, pipeline: Path, device: torch.device, engine: EngineChoice) -> str:
    """Digest everything that decides what training produces: params, data, code, PyTorch, device, threads, engine.

    Which files are the code, the deps of ``train`` in ``pipeline`` (dvc.yaml) say.
    """
    deps = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]["train"]["deps"]
    code = [digest(Path(dep).read_bytes()) for dep in deps if dep.endswith((".py", ".cpp"))]
    steps = [engine.name, str(engine.compiles), str(engine.in_lanes)]
    cpu = [torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]
    machine = [torch.__version__, str(device), *cpu, *steps]
    recipe = sorted(flat_params(params, "data", "model", "train").items())
    return digest(repr((recipe, data_digest(), code, machine)).encode())


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
        self._path.unlink(missing_ok=True)

    def _refuse(self, reason: str) -> None:
        print(f"{self._path}: this checkpoint is not used, {reason}; training starts afresh", file=sys.stderr)
