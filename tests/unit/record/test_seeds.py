from collections.abc import Callable
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.record.lineage import Code
from lenet5.record.seeds import SEEDS, SeedsRun
from lenet5.record.store import Store
from lenet5.results.history import EpochRow

NAMES = [
    f"{name}_{kind}" for name in ("running", "train", "validation", "test", "gap") for kind in ("loss", "accuracy")
]
ROWS = [EpochRow(epoch=epoch, learning_rate=0.1, **dict.fromkeys(NAMES, 1 / epoch)) for epoch in (1, 2)]
FIGURES = {"test_accuracy": 0.9}


@pytest.fixture
def opened(store: Store, params: Params) -> Callable[[], SeedsRun]:
    """The run of the same question, as each repetition of the command opens it."""
    return lambda: SeedsRun(store, params, [0, 1], "a question", {"mlflow.user": "a-person"}, Code("", "", "", ""))


@pytest.mark.parametrize("broken", ["log_batch", "set_terminated"])
@pytest.mark.parametrize("repeated", [False, True], ids=["the same command", "a repetition"])
def test_a_store_that_goes_away_over_a_seed_has_it_once_and_whole(
    store: Store, opened: Callable[[], SeedsRun], monkeypatch: pytest.MonkeyPatch, broken: str, repeated: bool
) -> None:
    record = opened()

    def away(*_: object, **__: object) -> None:
        raise MlflowException("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(store.client, broken, away)
        with pytest.raises(UserError, match="the server is away"):
            record.add(0, ROWS, FIGURES)
    record = opened() if repeated else record
    for _ in range(2):
        record.add(0, ROWS, FIGURES)
    runs = store.client.search_runs([store.experiment_id], order_by=["attributes.run_name DESC"])
    assert len(runs) == 2
    child = next(run for run in runs if run.info.run_name == "seed-0")
    assert child.info.status == "FINISHED"
    assert child.data.params["train.seed"] == "0"
    assert child.data.metrics["test_accuracy"] == 0.9
    history = store.client.get_metric_history(child.info.run_id, "loss/test")
    assert sorted((one.step, one.value) for one in history) == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize("repeated", [False, True], ids=["the same command", "a repetition"])
def test_a_lost_answer_doubles_neither_the_run_nor_its_seeds(
    store: Store, opened: Callable[[], SeedsRun], monkeypatch: pytest.MonkeyPatch, repeated: bool
) -> None:
    create = store.client.create_run

    def asked_again(*arguments: Any) -> Run:
        create(*arguments)
        return create(*arguments)

    monkeypatch.setattr(store.client, "create_run", asked_again)
    record = opened()
    record.add(0, ROWS, FIGURES)
    create(store.experiment_id, 1, {SEEDS: "a question"})  # its request was taken, and done only now
    record = opened() if repeated else record
    for seed in (0, 1):
        record.add(seed, ROWS, FIGURES)
    record.finish(FIGURES)
    parent, *children = store.client.search_runs([store.experiment_id], order_by=["attributes.run_name"])
    assert (parent.info.status, parent.data.params["seeds"]) == ("FINISHED", "2")
    assert [(run.info.run_name, run.info.status) for run in children] == [
        ("seed-0", "FINISHED"),
        ("seed-1", "FINISHED"),
    ]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert [run.data.params["train.seed"] for run in children] == ["0", "1"]
    assert {run.data.tags["gap.is_to"] for run in (parent, *children)} == {"validation images"}
