"""What every engine does for a search: it runs jobs beside each other and tells what happens to them.

An engine knows neither what a job computes nor what its rows mean: that is between the work, a function, and who
asked for it. It keeps nothing: a job that was lost is started again by whoever wants it.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from lenet5.errors import UserError

Row: TypeAlias = Mapping[str, Any]
"""What a job gives as it goes: plain values by name, so that they cross from one machine to another."""

Work: TypeAlias = Callable[[Mapping[str, Any]], Iterator[Row]]
"""What a worker does with a job's params: a function that another process can import, or a ``partial`` of one.

Where it raises SystemExit, or what nobody foresaw, its worker ends and another takes its place: the job is lost.
"""


class HopelessError(Exception):
    """Raised by a work: the params are why it ended, and trying them again would end it the same way."""


@dataclass(frozen=True)
class Job:
    """Something to train: ``params`` is all that a work is told, plain values."""

    key: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Gained:
    """A job gave a row."""

    key: str
    row: Row


@dataclass(frozen=True)
class Ended:
    """A job has given its last row. Nothing more comes of it, nor after the two below."""

    key: str


@dataclass(frozen=True)
class Failed:
    """The work raised an error, told in a line; ``hopeless`` where it would again."""

    key: str
    reason: str
    hopeless: bool


@dataclass(frozen=True)
class Lost:
    """The worker went away with the job: it was killed, or the work raised what nobody foresaw.

    ``with_machine`` where its whole machine went: that says nothing about the job. Without it, the job may be what
    takes its worker down.
    """

    key: str
    reason: str
    with_machine: bool = False


Event: TypeAlias = Gained | Ended | Failed | Lost


def told(work: Work, job: Job) -> Iterator[Event]:
    """What becomes of ``job`` on the worker that calls this, to the end."""
    try:
        for row in work(job.params):
            yield Gained(job.key, row)
        yield Ended(job.key)
    except HopelessError as error:
        yield Failed(job.key, str(error), hopeless=True)
    except UserError as error:
        yield Failed(job.key, str(error), hopeless=False)
    except Exception as error:
        traceback.print_exc()
        yield Lost(job.key, f"{type(error).__name__}: {error}")


class Engine(Protocol):
    """Runs jobs. Used by one thread; ``close`` may be called in any state."""

    def free(self) -> int:
        """How many jobs could start now. It may change while machines come and go."""

    def start(self, job: Job) -> None:
        """Begin ``job`` on a free worker; returns at once. A key names one job at a time."""

    def stop(self, key: str) -> None:
        """Want no more of a job: no event of it comes any more, and its worker is free after the row it is at."""

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened; waits up to ``timeout`` seconds for the first. Rows of one job keep their order."""

    def close(self) -> None:
        """End all workers at once; what they were at is lost."""
