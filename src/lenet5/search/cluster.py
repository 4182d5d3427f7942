"""Workers on several machines: tasks of a Ray cluster that `lenet5 cluster` has started.

Code, params and the digests of the data go to a worker with its job. It computes in the folder of the machine's own
project, where it looks for the data and fetches what is not there.
"""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from lenet5 import __path__ as code
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.data.sources import fetch_all
from lenet5.errors import UserError
from lenet5.params import DownloadParams
from lenet5.search import ray_settings
from lenet5.search.engine import Event, Failed, Gained, Job, Lost, Work, told

_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 1.0
"""Ray tells the tasks of a machine that lost its power after seven minutes, and a list of machines after one."""

_REST_SECONDS = 5.0
"""So long a machine on which a job was lost gets none: one that is going down would lose the job again, and again."""

_HEAD_SECONDS = 40.0
"""A head that does not answer for so long is gone; after a minute Ray would end this process without a word."""

_ENDED_AT_MOST = 3
"""Workers that may end before they have begun; then no other is started on their machine."""

_BEGUN = "begun"
"""A worker's first word. What ends it before is its machine's doing."""


class UnfitError(Exception):
    """Why a machine cannot take jobs."""


@dataclass
class _Placed:
    """A job on a machine, by the machine's id, and whether its worker has begun."""

    key: str
    machine: str
    begun: bool = False


class ClusterEngine:
    """A job a processor on every machine of the cluster at ``address``, HOST:PORT, with ``gpus`` of a card for each.

    Raises UserError where the cluster cannot be reached or does not take this process.
    """

    def __init__(self, work: Work, address: str, gpus: float, download: DownloadParams) -> None:
        self._ray = _connect(address)
        self._address, self._gpus = address, gpus
        options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0, "num_returns": "streaming"}
        self._task = self._ray.remote(**options)(_serve)
        self._asked = self._ray.put((work, download, torch.__version__, bool(gpus)))
        self._jobs: dict[Any, _Placed] = {}  # by the stream of events
        self._machines: dict[str, tuple[str, int]] = {}  # by id: the name, and the jobs it can take
        self._unfit: dict[str, str] = {}
        self._ended = Counter[str]()  # by machine: workers that ended before they had begun, one after another
        self._resting: dict[str, float] = {}  # until when
        self._looked, self._answered = 0.0, time.monotonic()

    def free(self) -> int:
        """How many jobs could start now."""
        self._look()
        return sum(self._rooms().values())

    def start(self, job: Job) -> None:
        """Begin ``job`` where most are free."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        rooms = self._rooms()
        machine = max(rooms, key=lambda name: rooms[name])
        place = NodeAffinitySchedulingStrategy(machine, soft=False)
        stream = self._task.options(scheduling_strategy=place).remote(self._asked, job)
        self._jobs[stream] = _Placed(job.key, machine)

    def stop(self, key: str) -> None:
        """Want no more of a job."""
        for stream in [stream for stream, job in self._jobs.items() if job.key == key]:
            del self._jobs[stream]
            self._ray.cancel(stream)

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened, waiting up to ``timeout`` seconds for it. Raises UserError where no machine is fit."""
        self._look()
        for stream, job in list(self._jobs.items()):
            if job.machine not in self._machines:
                del self._jobs[stream]
                yield Lost(job.key, "its machine is gone", with_machine=True)
        if not self._jobs:
            self._refuse_unfit()
            time.sleep(min(timeout, _LOOK_SECONDS))
            return
        streams = list(self._jobs)
        ready, _ = self._ray.wait(streams, num_returns=1, timeout=min(timeout, _LOOK_SECONDS), fetch_local=False)
        if ready:  # of those that came beside it none waits for the next call
            ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0, fetch_local=False)
        for stream in ready:
            if stream in self._jobs:  # not stopped by what the event before made of it
                yield from self._receive(stream)

    def close(self) -> None:
        """End all workers at once; where the head is gone, when this process ends."""
        if self._answered >= self._looked:  # or Ray waits for the head, and may end this process before it says why
            self._ray.shutdown()

    def _receive(self, stream: Any) -> Iterator[Event]:
        job, errors = self._jobs[stream], self._ray.exceptions
        where = self._machines.get(job.machine, ("a machine that is gone", 0))[0]
        try:
            event = self._ray.get(next(stream), timeout=_ANSWER_SECONDS)
        except errors.RayTaskError as error:  # what the work raises comes as an event
            reason, by_machine = _why_unfit(error.cause), True
            self._unfit[job.machine] = f"{where}: {reason}"
        except (errors.RayError, StopIteration) as error:
            kind = type(error).__name__
            reason = _WHY_LOST.get(kind, f"Ray lost it ({kind})")
            by_machine = kind not in _BY_ITSELF or not job.begun
            if kind in _ENDED and not job.begun:
                self._count_ended(job.machine, where)
        else:
            if event == _BEGUN:
                job.begun = True
                del self._ended[job.machine]
                return
            if not isinstance(event, Gained):
                del self._jobs[stream]
            yield event
            return
        del self._jobs[stream]
        self._resting[job.machine] = time.monotonic() + _REST_SECONDS
        yield Lost(job.key, f"{reason} (on {where})", by_machine)

    def _count_ended(self, machine: str, where: str) -> None:
        self._ended[machine] += 1
        if self._ended[machine] >= _ENDED_AT_MOST:
            self._unfit[machine] = (
                f"{where}: {_ENDED_AT_MOST} workers ended before they had begun; look there for room in /tmp/ray, and "
                "for memory"
            )

    def _rooms(self) -> dict[str, int]:
        at = [job.machine for job in self._jobs.values()]
        now = time.monotonic()
        return {
            name: max(0, jobs - at.count(name))
            for name, (_, jobs) in self._machines.items()
            if self._resting.get(name, 0) < now
        }

    def _look(self) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        if not self._head_answers():  # asking Ray would wait for it
            return
        self._machines = {
            node["NodeID"]: (
                node["NodeManagerAddress"],
                0 if node["NodeID"] in self._unfit else self._jobs_at_once(node["Resources"]),
            )
            for node in self._ray.nodes()
            if node["Alive"]
        }

    def _head_answers(self) -> bool:
        try:
            ray_settings.own_address(*ray_settings.host_and_port(self._address))
        except OSError as error:
            self._looked = time.monotonic()
            if self._looked - self._answered > _HEAD_SECONDS:
                raise UserError(f"--on {self._address}: {ray_settings.nobody_there(error)}, and this goes on") from None
            return False
        self._looked = self._answered = time.monotonic()
        return True

    def _jobs_at_once(self, resources: dict[str, float]) -> int:
        processors = int(resources.get("CPU", 0))
        if not self._gpus:
            return processors
        on_a_card = int(1 / self._gpus + 1e-6)  # a job's share lies on one card
        return min(int(resources.get("GPU", 0)) * on_a_card, processors)

    def _refuse_unfit(self) -> None:
        if not any(jobs for _, jobs in self._machines.values()):
            lacks = "a card" if self._gpus else "a processor for jobs"
            reasons = (
                "; ".join(sorted(set(self._unfit.values()))) or f"none has {lacks}; `lenet5 cluster join` adds one"
            )
            raise UserError(f"no machine of the cluster at {self._address} can take jobs: {reasons}")


_WHY_LOST = {
    "WorkerCrashedError": "its process ended",
    "LocalRayletDiedError": "Ray's process on its machine ended",
    "NodeDiedError": "its machine is gone",
    "OutOfMemoryError": "its machine was short of memory",
    "GetTimeoutError": "its machine does not answer",
}

_BY_ITSELF = ("WorkerCrashedError", "OutOfMemoryError")
"""What may be a job's own doing. All else is its machine's, or the way to it."""

_ENDED = (*_BY_ITSELF, "RuntimeEnvSetupError")


def _why_unfit(error: BaseException) -> str:
    if isinstance(error, UnfitError):
        return str(error)
    line = next(iter(str(error).splitlines()), type(error).__name__)  # the rest is a traceback
    return f"its environment cannot run jobs ({line}); install what requirements.lock pins"


def _serve(asked: tuple[Work, DownloadParams, str, bool], job: Job) -> Iterator[Event | str]:
    """The life of a job on its worker. Raises UnfitError where this machine cannot take jobs."""
    work, download, version, card = asked
    ray_settings.reach_out_again(os.environ)
    here = socket.gethostname()
    if version != torch.__version__:
        raise UnfitError(f"{here} has PyTorch {torch.__version__}, and the driver {version}; install the same")
    if ray_settings.WORKSPACE not in os.environ:
        raise UnfitError(f"{here} was not brought in by `lenet5 cluster join`; stop Ray there, and do so")
    try:
        os.chdir(os.environ[ray_settings.WORKSPACE])
        Path(".lenet5").mkdir(exist_ok=True)
        with filelock.FileLock(".lenet5/download.lock"):
            fetch_all(RAW_DIR, download, os.environ.get("FASHION_MNIST_DIR"))
    except UserError as error:
        raise UnfitError(f"{here} has no data: {error}") from None
    except OSError as error:
        folder = os.environ[ray_settings.WORKSPACE]
        raise UnfitError(f"{here} cannot keep the data in {folder}: {error.strerror}; see to that there") from None
    if not card:
        torch.set_num_threads(1)
    yield _BEGUN
    for event in told(work, job):
        if isinstance(event, Failed) and not event.hopeless:
            raise UnfitError(f"{here} cannot train: {event.reason}")
        yield event
        if isinstance(event, Lost):
            raise SystemExit(event.reason)  # or Ray would give this process the next job


def _connect(address: str) -> Any:
    """Ray, connected. Raises UserError as ``ClusterEngine``."""
    try:
        host, port = ray_settings.host_and_port(address)
        own = ray_settings.own_address(host, port)
    except OSError as error:
        raise UserError(f"--on {address}: {ray_settings.nobody_there(error)}") from None
    ray_settings.require_ray()
    ray_settings.require_token()
    os.environ.update(ray_settings.environment())  # read when Ray is imported
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what a person can mend is said here, in a line
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # or Ray would print a page for a worker that ended
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _without_stderr():
        warnings.simplefilter("ignore")
        shutil.copytree(code[0], Path(folder, "lenet5"), ignore=shutil.ignore_patterns("__pycache__"))
        try:
            ray.init(
                address=f"{host}:{port}",
                _node_ip_address=own,
                runtime_env={"working_dir": folder},
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        except Exception as error:  # Ray raises what it has at hand, RuntimeError and plain Exception too
            with suppress(Exception):
                ray.shutdown()
            raise UserError(f"--on {address}: {ray_settings.advice(_chain(error), address)}") from error
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return ray


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep to itself what Ray's library logs before it has read how much it may: what comes of it is said here."""
    sys.stderr.flush()
    own = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)


def _chain(error: BaseException | None) -> str:
    return f"{error}\n{_chain(error.__cause__ or error.__context__)}" if error else ""
