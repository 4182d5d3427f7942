"""Workers on this machine: a process each, and no server."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from lenet5.search.engine import Ended, Event, Gained, Job, Lost, Work, told

STOP = "stop"


@dataclass
class _Worker:
    """A process and the pipe to it; the job it is at, and whether anybody wants that."""

    process: SpawnProcess
    pipe: Connection
    key: str | None = None
    wanted: bool = True


class LocalEngine:
    """``workers`` processes, started when they are first needed; each calls ``prepare`` before its first job.

    ``check`` is called before one is started, and may raise: it reads the code as it is then.
    """

    def __init__(self, work: Work, workers: int, prepare: Callable[[], None], check: Callable[[], None]) -> None:
        self._work, self._most, self._prepare, self._check = work, workers, prepare, check
        self._context = multiprocessing.get_context("spawn")  # a forked process shares PyTorch's threads: none fork
        self._workers: list[_Worker] = []

    def free(self) -> int:
        """How many jobs could start now."""
        return self._most - sum(worker.key is not None for worker in self._workers)

    def start(self, job: Job) -> None:
        """Begin ``job``."""
        idle = [worker for worker in self._workers if worker.key is None]
        worker = idle[0] if idle else self._spawn()
        worker.key, worker.wanted = job.key, True
        with suppress(OSError):  # it died idle: the pipe tells, and the job is lost as any other
            worker.pipe.send(job)

    def stop(self, key: str) -> None:
        """Want no more of a job."""
        for worker in self._workers:
            if worker.key == key and worker.wanted:
                worker.wanted = False
                with suppress(OSError):
                    worker.pipe.send(STOP)

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened, waiting up to ``timeout`` seconds for it."""
        pipes = {worker.pipe: worker for worker in self._workers if worker.key is not None}
        for pipe in wait(list(pipes), timeout):
            worker = pipes[pipe]  # type: ignore[index]
            event = self._receive(worker)
            if worker.wanted:
                yield event

    def close(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            worker.process.kill()
        for worker in [*self._workers]:
            self._part_with(worker)

    def _receive(self, worker: _Worker) -> Event:
        key = str(worker.key)
        try:
            event: Event = worker.pipe.recv()
        except (EOFError, OSError):
            self._part_with(worker)
            return Lost(key, f"its process ended ({_ending(worker.process.exitcode or 0)})")
        if isinstance(event, Lost):  # after some errors of a card all that its process does there fails
            worker.process.kill()
            self._part_with(worker)
        elif not isinstance(event, Gained):
            worker.key = None
        return event

    def _part_with(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)

    def _spawn(self) -> _Worker:
        self._check()
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._work, self._prepare), daemon=True)
        with _without_ctrl_c():
            process.start()
        there.close()
        worker = _Worker(process, here)
        self._workers.append(worker)
        return worker


def _serve(pipe: Connection, work: Work, prepare: Callable[[], None]) -> None:
    """The life of a worker: job after job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()
    while True:
        job = pipe.recv()
        if job == STOP:  # it came after the last row of what it was for
            continue
        for event in told(work, job):
            pipe.send(event)
            if isinstance(event, Gained) and pipe.poll() and pipe.recv() == STOP:
                pipe.send(Ended(job.key))
                break


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """What is started in this block never hears of Ctrl-C, not even while it imports; here it is heard afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _end_with_parent() -> None:
    """A driver that is killed leaves nothing that computes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
