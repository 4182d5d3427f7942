"""The name under which the record knows a training: the same however often it is killed and taken up again."""

import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
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
            write_bytes(self._folder / f"{training_digest[:32]}-{self.name}.finished", self.name.encode())


@contextmanager
def begin(folder: Path, key: str, about: str) -> Iterator[Attempt]:
    """The attempt at the training that ``key`` identifies: one that did not come to its end, or a new one.

    ``about`` is what a person calls it.

    While another process is at the very same training, that one keeps the name, and this one takes another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in _places(folder, key[:32]):
        with suppress(Timeout):
            held = FileLock(unfinished.with_suffix(".lock"), timeout=_PROBED_SECONDS).acquire()
            break
    with held:
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
                found.append(CutShort(name, path.stem.partition("-")[0], about))
    return found


def names_of_attempts(folder: Path) -> set[str]:
    """The trainings of this workspace that have not been recorded yet, under way or not."""
    return _names([*folder.glob("*.unfinished"), *folder.glob("*.finished")])


def attempts_at(folder: Path, training_digest: str) -> set[str]:
    """The names of the attempts that produced what ``training_digest`` identifies, until ``forget``."""
    return _names(_finished(folder, training_digest))


def forget(folder: Path, training_digest: str) -> None:
    """The result is recorded: nobody will ask for its attempts again."""
    for path in _finished(folder, training_digest):
        path.unlink(missing_ok=True)


def _places(folder: Path, key: str) -> Iterator[Path]:
    """The files that can keep the name of a training that ``key`` identifies; those that do come first."""
    begun = sorted(folder.glob(f"{key}*.unfinished"))
    places = (folder / f"{name}.unfinished" for name in chain([key], (f"{key}-{number}" for number in count(2))))
    return chain(begun, (path for path in places if path not in begun))


def _finished(folder: Path, training_digest: str) -> list[Path]:
    return sorted(folder.glob(f"{training_digest[:32]}*.finished"))


def _names(paths: Iterable[Path]) -> set[str]:
    return {name for path in paths if (name := _read(path))}


def _read(path: Path) -> str | None:
    name = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if path.exists() else ""
    return name if re.fullmatch("[0-9a-f]{32}", name) else None
