"""The name under which the record knows a training: the same however often it is killed and taken up again."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from lenet5.files import write_bytes

_PROBED_SECONDS = 0.5  # at most, that ``cut_short`` holds the lock of an attempt


class CutShort(NamedTuple):
    """A training that did not come to its end: its name in the record, its key's beginning, and what it trained."""

    name: str
    key: str
    about: str


class Attempt:
    """One training, from its first start until ``register`` has recorded what it produced."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.name = name

    def finished(self, training_digest: str) -> None:
        """Keep the name with what the training produced, for ``register``: the store may not have heard of it."""
        with suppress(OSError):  # a full disk may cost the run its end, not the training
            write_bytes(_finished(self._folder, training_digest), self.name.encode())


@contextmanager
def begin(folder: Path, key: str, about: str) -> Iterator[Attempt]:
    """The attempt at the training that ``key`` identifies: the one that did not come to its end, or a new one.

    ``about`` is what a person calls it.

    While another process is at the very same training, that one keeps the name, and this one takes another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key[:32]}.lock", timeout=_PROBED_SECONDS)
    try:
        held = lock.acquire()
    except Timeout:
        yield Attempt(folder, uuid.uuid4().hex)
        return
    with held:
        unfinished = folder / f"{key[:32]}.unfinished"
        attempt = Attempt(folder, _read(unfinished) or uuid.uuid4().hex)
        write_bytes(unfinished, f"{attempt.name}\n{about}\n".encode())
        yield attempt
        unfinished.unlink(missing_ok=True)  # not after an error: then the training is to go on


def cut_short(folder: Path) -> list[CutShort]:
    """The trainings that did not come to their end, and that no process is at."""
    found = []
    for path in sorted(folder.glob("*.unfinished")):
        with suppress(Timeout), FileLock(path.with_suffix(".lock"), blocking=False):
            if name := _read(path):
                about = path.read_text(encoding="utf-8", errors="replace").partition("\n")[2].strip()
                found.append(CutShort(name, path.stem, about))
    return found


def names_of_attempts(folder: Path) -> set[str]:
    """The trainings of this workspace that have not been recorded yet, under way or not."""
    paths = [*folder.glob("*.unfinished"), *folder.glob("*.finished")]
    return {name for path in paths if (name := _read(path))}


def attempt_at(folder: Path, training_digest: str) -> str | None:
    """The name of the attempt that produced what ``training_digest`` identifies, until ``forget``."""
    return _read(_finished(folder, training_digest))


def forget(folder: Path, training_digest: str) -> None:
    """The result is recorded: nobody will ask for its attempt again."""
    _finished(folder, training_digest).unlink(missing_ok=True)


def _finished(folder: Path, training_digest: str) -> Path:
    return folder / f"{training_digest[:32]}.finished"


def _read(path: Path) -> str | None:
    name = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if path.exists() else ""
    return name if re.fullmatch("[0-9a-f]{32}", name) else None
