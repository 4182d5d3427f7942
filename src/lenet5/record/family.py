"""A parent run with a child for each of many trainings, kept as its owner sees them: told again, nothing is doubled.

The owner, a sweep say, has the truth and gives all of it, again and again; what MLflow lacks of it is sent. So a
server that was away, a restart and a record that was wiped are all the same: something is lacking.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from lenet5.record.result import Point
from lenet5.record.streaming import BACK, reason_of, say

Status: TypeAlias = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_EVERY_SECONDS, _AFTER_FAILURE_SECONDS = 1.0, 5.0
_PATIENCE = 20.0
"""Seconds in which something must arrive while the last of it is sent."""


@dataclass(frozen=True)
class Member:
    """A run as its owner sees it, begun and ended at these times, in milliseconds since 1970, or 0: not known.

    ``figures`` carry the time of its end.
    """

    key: str
    name: str
    status: Status
    params: Mapping[str, str]
    tags: Mapping[str, str]
    description: str
    points: Sequence[Point] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    ended: int = 0
    started: int = 0


@dataclass(frozen=True)
class Family:
    """A parent and its children; ``files`` is a folder that goes to the parent's artifacts once it has ended."""

    parent: Member
    children: Sequence[Member]
    files: Path | None = None


class Runs(Protocol):
    """The runs of a family in a tracking store. May raise, and may be repeated with the same arguments."""

    def send(self, family: Family, arrived: Callable[[], None]) -> None:
        """Send what is lacking; call ``arrived`` whenever something has been taken."""


class Mirror:
    """Sends what MLflow lacks in a thread of its own. Use as a context manager around the work.

    ``connect`` is called in that thread, again after a failure; ``later`` is the command that sends what is lacking.
    """

    def __init__(self, connect: Callable[[], Runs], later: str) -> None:
        self._connect, self._later = connect, later
        self._wake, self._last = threading.Event(), threading.Event()
        self._family: Family | None = None
        self._behind = False
        self._arrived = time.monotonic()
        self._thread = threading.Thread(target=self._deliver, daemon=True, name="mirror")

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Who presses Ctrl-C does not want to wait.
        self._end(_PATIENCE if kind is None or issubclass(kind, Exception) else 1.0)

    def show(self, family: Family) -> None:
        """Say how it all stands; returns at once."""
        self._family = family
        self._wake.set()

    def _end(self, patience: float) -> None:
        self._last.set()
        self._wake.set()
        self._arrived = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - self._arrived < patience:
            self._thread.join(0.1)
        if self._thread.is_alive() or self._behind:
            say(f"MLflow has not got everything yet; {self._later} sends the rest")

    def _deliver(self) -> None:
        runs: Runs | None = None
        while True:
            self._wake.clear()
            last, family = self._last.is_set(), self._family
            try:
                if family:
                    runs = runs or self._connect()
                    runs.send(family, self._arrive)
                    if self._behind:
                        self._behind = False
                        say(BACK)
                if last:
                    return
                self._last.wait(_EVERY_SECONDS)
                self._wake.wait()
            except Exception as error:  # whatever a store does wrong, the work goes on
                runs = None
                self._report(error)
                if last:
                    return
                self._last.wait(_AFTER_FAILURE_SECONDS)

    def _arrive(self) -> None:
        self._arrived = time.monotonic()

    def _report(self, error: Exception) -> None:
        if not self._behind:
            self._behind = True
            say(f"MLflow is behind, the work goes on and nothing is lost ({reason_of(error)})")
