from collections.abc import Callable

import pytest
from mlflow.exceptions import MlflowException

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.record.lineage import Code
from lenet5.record.seeds import SeedsRun
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
