import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lenet5.errors import UserError
from lenet5.params import DownloadParams
from lenet5.search import cluster, ray_settings
from lenet5.search.engine import Failed, Gained, HopelessError, Job, Row, Work

DOWNLOAD = DownloadParams(sources=["torchvision"], local_dir=None, timeout=5)


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
