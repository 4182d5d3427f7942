"""The seeds that have finished, kept as they finish: what a command that was interrupted, or repeated, goes on from."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from lenet5.errors import UserError
from lenet5.results.history import EpochRow


@dataclass(frozen=True)
class Replica:
    """What one seed gave: its history and the figures of its chosen weights, named as in the record."""

    seed: int
    rows: list[EpochRow]
    figures: Mapping[str, float]


class Journal:
    """A file with a line for each seed of one recipe that has finished."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[int, Replica]:
        """What is there, by seed. A line that was cut, or damaged, is a seed that has not finished."""
        finished: dict[int, Replica] = {}
        for line in self._path.read_bytes().splitlines() if self._path.exists() else []:
            with suppress(ValueError, TypeError, KeyError):
                content = json.loads(line)
                rows = [EpochRow(**row) for row in content["rows"]]
                finished[int(content["seed"])] = Replica(int(content["seed"]), rows, dict(content["figures"]))
        return finished

    def add(self, replica: Replica) -> None:
        """Keep ``replica``; when this returns it is on disk."""
        line = json.dumps({**vars(replica), "rows": [asdict(row) for row in replica.rows]})
        with self._path.open("ab") as stream:
            stream.write(f"\n{line}\n".encode())  # whatever was cut before it stays a line of its own
            stream.flush()
            os.fsync(stream.fileno())


@contextmanager
def journal(folder: Path, key: str) -> Iterator[Journal]:
    """The journal of the recipe ``key``, for this process alone. Raises UserError where another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key[:32]}.jsonl"
    try:
        with filelock.FileLock(path.with_suffix(".lock"), blocking=False):
            yield Journal(path)
    except filelock.Timeout:
        raise UserError("another `lenet5 seeds` is training these params; wait for it, or end it") from None
