import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lenet5.errors import UserError
from lenet5.params import DownloadParams
from lenet5.search import cluster, ray_settings
from lenet5.search.engine import Ended, Failed, Gained, HopelessError, Job, Lost, Row, Work

DOWNLOAD = DownloadParams(sources=["torchvision"], local_dir=None, timeout=5)

Machine = Callable[..., tuple["OneMachine", cluster.ClusterEngine]]


@pytest.fixture(autouse=True)
def _machine_of_a_cluster(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_settings.WORKSPACE, str(workspace))
    monkeypatch.setattr(cluster, "fetch_all", lambda *_: [])


@pytest.mark.parametrize("head_is_gone", [False, True])
def test_workers_end_at_once_but_where_the_head_is_gone_ray_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, head_is_gone: bool
) -> None:
    ended = []
    ray = SimpleNamespace(remote=lambda **_: lambda task: task, put=list, nodes=list, shutdown=lambda: ended.append(1))
    monkeypatch.setattr(cluster, "_connect", lambda _: ray)
    with socket.create_server(("127.0.0.1", 0)) as head:
        engine = cluster.ClusterEngine(a_row, f"127.0.0.1:{head.getsockname()[1]}", 0, DOWNLOAD)
        if head_is_gone:
            head.close()
        assert engine.free() == 0
    engine.close()
    assert bool(ended) != head_is_gone


class TaskError(Exception):
    """As Ray gives what a task raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Stream(Iterator[Any]):
    """What comes of a job: what a test says comes."""

    def __init__(self) -> None:
        self.coming = deque[Any]()

    def __next__(self) -> Any:
        return self.coming.popleft()


class OneMachine:
    """Ray with one machine, that has ``resources``."""

    exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=TaskError)

    def __init__(self, resources: Mapping[str, float]) -> None:
        self.resources, self.streams = resources, dict[str, Stream]()

    def nodes(self) -> list[Mapping[str, Any]]:
        return [{"NodeID": "1", "NodeManagerAddress": "10.0.0.1", "Resources": self.resources, "Alive": True}]

    def put(self, value: object) -> object:
        return value

    def remote(self, **_: object) -> Callable[..., Any]:
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._begin))

    def wait(self, streams: list[Stream], **_: object) -> tuple[list[Stream], list[Stream]]:
        return [stream for stream in streams if stream.coming], []

    def get(self, value: Any, **_: object) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def _begin(self, _: object, job: Job) -> Stream:
        return self.streams.setdefault(job.key, Stream())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine, and the engine whose jobs take a share of a card there."""

    def make(gpus: float = 0, **resources: float) -> tuple[OneMachine, cluster.ClusterEngine]:
        ray = OneMachine(resources)
        monkeypatch.setattr(cluster, "_connect", lambda _: ray)
        return ray, cluster.ClusterEngine(a_row, "127.0.0.1:1", gpus, DOWNLOAD)

    placing = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", placing)
    monkeypatch.setattr(ray_settings, "own_address", lambda *_: "127.0.0.1")
    monkeypatch.setattr(cluster, "_LOOK_SECONDS", 0)
    return make


def test_what_runs_on_a_machine_that_turns_out_unfit_goes_on_there_and_nothing_else_begins(machine: Machine) -> None:
    ray, engine = machine(CPU=2)
    assert engine.free() == 2
    for key in ("0", "1"):
        engine.start(Job(key, {}))
    ray.streams["0"].coming.append(TaskError(cluster.UnfitError("a-host cannot train: no compiler")))
    assert list(engine.events(0)) == [Lost("0", "a-host cannot train: no compiler (on 10.0.0.1)", with_machine=True)]
    assert engine.free() == 0
    coming = ["begun", Gained("1", {"epoch": 1}), Ended("1")]
    ray.streams["1"].coming.extend(coming)
    assert [event for _ in coming for event in engine.events(0)] == coming[1:]
    assert engine.free() == 0
    with pytest.raises(UserError, match=r"can take jobs: 10\.0\.0\.1: a-host cannot train: no compiler$"):
        list(engine.events(0))


@pytest.mark.parametrize(
    ("share", "cards", "jobs"),
    [(0.4, 2, 4), (0.6, 5, 5), (0.5, 2, 4), (0.3333, 2, 6), (0.1, 1, 10), (1, 3, 3), (0.5, 0, 0), (0.0001, 1, 64)],
)
def test_a_jobs_share_lies_on_one_card(machine: Machine, share: float, cards: int, jobs: int) -> None:
    _, engine = machine(share, CPU=64, GPU=cards)
    assert engine.free() == jobs


def test_a_share_that_ray_cannot_count_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"^--gpus-per-trial 5e-05: a share of one card, from 0\.0001 to 1, or 0"):
        ray_settings.refuse_share(0.00005, "host")
    for share in (0, 0.0001, 1):
        ray_settings.refuse_share(share, "host")


def served(work: Work) -> Iterator[Any]:
    return cluster._serve((work, DOWNLOAD, torch.__version__, False), Job("0", {}))


def a_row(_: Mapping[str, Any]) -> Iterator[Row]:
    yield {"epoch": 1}


def needs_a_compiler(params: Mapping[str, Any]) -> Iterator[Row]:
    yield from a_row(params)
    raise UserError("train.engine: lanes cannot be had, no compiler")


def diverges(_: Mapping[str, Any]) -> Iterator[Row]:
    raise HopelessError("the loss became nan")
    yield {}


def test_a_machine_on_which_a_work_cannot_be_done_is_unfit_and_the_job_is_none_of_its_doing() -> None:
    begun, row, *_ = served(a_row)
    assert (begun, row) == ("begun", Gained("0", {"epoch": 1}))
    events = served(needs_a_compiler)
    assert [next(events), next(events)] == ["begun", Gained("0", {"epoch": 1})]
    with pytest.raises(cluster.UnfitError, match=r"cannot train: train\.engine: lanes cannot be had, no compiler"):
        next(events)


def test_params_that_diverge_say_nothing_about_the_machine() -> None:
    assert list(served(diverges))[1:] == [Failed("0", "the loss became nan", hopeless=True)]


def surprises(params: Mapping[str, Any]) -> Iterator[Row]:
    yield from a_row(params)
    raise RuntimeError("nobody foresaw this")


def test_a_process_whose_work_raised_what_nobody_foresaw_ends() -> None:
    events = served(surprises)
    told = [next(events), next(events), next(events)]
    assert told == ["begun", Gained("0", {"epoch": 1}), Lost("0", "RuntimeError: nobody foresaw this")]
    with pytest.raises(SystemExit):
        next(events)
