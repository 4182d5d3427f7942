"""Sending points to a tracking store while training runs, without ever holding training up."""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from lenet5.record.addresses import without_secrets
from lenet5.record.result import Point

POINTS_A_CALL = 1000
"""The most that MLflow's log_batch takes."""
BACK = "MLflow is back and has every point"

_EVERY_SECONDS = 1.0
_AFTER_FAILURE_SECONDS = 5.0
_KILLED_PATIENCE = 0.5
_FAILED_PATIENCE = 60.0  # a training that fails at once fails before the store has been opened

_REST_TO_COME = "MLflow has not got everything yet; `dvc repro` sends the rest at the stage register"
_FAILURE_UNHEARD = "MLflow has not heard that this training failed; the next one closes its run there"


class Run(Protocol):
    """A run of a tracking store. Every method may raise, and may be repeated with the same arguments."""

    def log_points(self, points: Sequence[Point]) -> None:
        """Add points; one that is there already is not added again."""

    def finish(self, training_digest: str) -> str:
        """Say what training produced; returns where a person sees the run."""

    def fail(self, reason: str, killed: bool) -> None:
        """Say that training did not end, and why."""


class Stream:
    """Hands points to a run in a thread of its own. Use as a context manager around training.

    ``open_run`` is called in that thread too, again after a failure: it must find the run it opened before.
    What has not arrived at the end is not lost, the stage ``register`` sends it.
    """

    def __init__(self, open_run: Callable[[], Run], patience: float = 5.0) -> None:
        self._open_run = open_run
        self._patience = patience
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pending: list[Point] = []
        self._last_word: Callable[[Run], None] | None = None
        self._behind = self._connected = self._failed = False
        self._thread = threading.Thread(target=self._deliver, daemon=True, name="tracking")

    def __enter__(self) -> "Stream":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            killed = not isinstance(error, Exception)
            self._failed = not killed
            reason = str(error) or type(error).__name__
            # Who presses Ctrl-C does not want to wait, least of all for a store that does not answer.
            patience = _FAILED_PATIENCE if not killed else _KILLED_PATIENCE if self._connected else 0.0
            self._end(lambda run: run.fail(reason, killed), patience, _REST_TO_COME if killed else _FAILURE_UNHEARD)

    def send(self, points: Sequence[Point]) -> None:
        """Queue ``points``; returns at once."""
        with self._lock:
            self._pending.extend(points)

    def finish(self, training_digest: str) -> str | None:
        """Deliver what is queued and close training's part of the run, or give up after ``patience`` seconds.

        Returns where a person sees the run, None where it is not there yet.
        """
        pages: list[str] = []
        self._end(lambda run: pages.append(run.finish(training_digest)), self._patience, _REST_TO_COME)
        return pages[0] if pages else None

    def _end(self, last_word: Callable[[Run], None], patience: float, unheard: str) -> None:
        self._last_word = last_word
        self._wake.set()
        self._thread.join(patience)
        if self._thread.is_alive() or (self._behind and not self._failed):
            say(unheard)

    def _deliver(self) -> None:
        run: Run | None = None
        while True:
            ending = self._last_word
            try:
                run = run or self._open_run()
                self._connected = True
                self._drain(run)
                if ending:
                    ending(run)
                    return
                self._wake.wait(_EVERY_SECONDS)
            except Exception as error:  # whatever a store does wrong, training goes on
                self._connected = False
                self._report(error)
                if ending:
                    return
                self._wake.wait(_AFTER_FAILURE_SECONDS)

    def _drain(self, run: Run) -> None:
        while True:
            with self._lock:
                batch = self._pending[:POINTS_A_CALL]
            if not batch:
                if self._behind:
                    self._behind = False
                    say(BACK)
                return
            run.log_points(batch)
            with self._lock:
                del self._pending[: len(batch)]

    def _report(self, error: Exception) -> None:
        if self._failed:
            say(f"{_FAILURE_UNHEARD} ({reason_of(error)})")
        elif not self._behind:
            self._behind = True
            say(f"MLflow is behind, training goes on and nothing is lost ({reason_of(error)})")


def reason_of(error: Exception) -> str:
    """What a store has against it, in one short line and without secrets."""
    return " ".join(without_secrets(str(error)).split())[:200]


def say(line: str) -> None:
    """Tell a person about the store, beside what the work itself prints."""
    print(line, file=sys.stderr, flush=True)
