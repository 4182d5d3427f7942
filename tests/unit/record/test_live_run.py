import threading
import time
from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lenet5.params import Params
from lenet5.record.lineage import Code
from lenet5.record.live_run import TrainingRun, catch_up, close_cut_short
from lenet5.record.result import TRAIN_ACCURACY, Point
from lenet5.record.store import DESCRIPTION, Store


@pytest.fixture
def quiet(params: Params) -> Params:
    recorded = params.register_.model_copy(update={"system_metrics": False})
    stuck = params.train.model_copy(update={"lr": 9.0, "optimizer": "sgd"})
    return params.model_copy(update={"register_": recorded, "train": stuck})


@pytest.fixture
def training(store: Store, quiet: Params) -> Callable[[], TrainingRun]:
    """Opens the run of one training, as each of its processes does."""
    return lambda: TrainingRun(store, "an-attempt", quiet, Code("", "", "", ""), {})


def system_metrics(store: Store, run: TrainingRun) -> set[int]:
    """The steps at which the machine's use was measured."""
    name = "system/cpu_utilization_percentage"
    return {metric.step for metric in store.client.get_metric_history(run.run_id, name)}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def epochs(*accuracies: float, first: int = 1) -> list[Point]:
    return [Point(TRAIN_ACCURACY, accuracy, epoch, 0) for epoch, accuracy in enumerate(accuracies, start=first)]


def description(store: Store, run: TrainingRun) -> str:
    return str(store.client.get_run(run.run_id).data.tags.get(DESCRIPTION, ""))


def test_a_run_says_that_it_is_at_chance_while_that_is_so(store: Store, training: Callable[[], TrainingRun]) -> None:
    run = training()
    run.log_points(epochs(0.3, 0.1, 0.1, 0.1, 0.1))
    assert description(store, run) == ""
    for _ in range(2):  # the second time as after a call that failed half way
        run.log_points(epochs(0.1, first=6))
    said = description(store, run)
    assert said.startswith(
        "This training has been at chance since epoch 2, right on one image in ten. Try a smaller `train.lr`: it is 9,"
    )
    run.log_points(epochs(0.1, 0.1, first=7))
    assert description(store, run) == said
    run.log_points(epochs(0.2, first=9))
    assert description(store, run) == ""


def test_a_training_that_goes_on_at_chance_says_so_at_once(store: Store, training: Callable[[], TrainingRun]) -> None:
    rows = epochs(0.1, 0.1, 0.1, 0.1, 0.1)
    training().log_points(rows)  # and killed
    run = training()
    assert description(store, run) == ""
    run.log_points(rows)
    assert "at chance since epoch 1," in description(store, run)
    run.fail("interrupted", killed=True)
    assert description(store, run) == "Training did not end: interrupted"


def test_what_another_training_took_for_cut_short_has_not_failed_once_it_has_ended(
    store: Store, training: Callable[[], TrainingRun]
) -> None:
    run = training()
    close_cut_short(store, ["an-attempt"])
    assert store.client.get_run(run.run_id).data.tags["failure"] == "Training did not end: its process was killed"
    assert catch_up(store, ["one that was never heard of", "an-attempt"], "a digest")
    ended = store.client.get_run(run.run_id)
    assert (ended.info.status, ended.data.tags.get("failure")) == ("FINISHED", None)
    assert description(store, run).startswith("Training has ended.")
    assert not catch_up(store, ["one that was never heard of"], "a digest")


def test_the_machines_use_is_measured_on_after_a_server_was_away(
    store: Store, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    register = params.register_.model_copy(update={"system_metrics": True})
    run = TrainingRun(store, "an-attempt", params.model_copy(update={"register_": register}), Code("", "", "", ""), {})

    def away(*_: object) -> None:
        raise MlflowException("no route to the server")

    def measures() -> bool:
        return any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())

    wait_for(lambda: bool(system_metrics(store, run)))
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "get_run", away)
        wait_for(lambda: not measures())
    before = system_metrics(store, run)
    run.log_points(epochs(0.5))
    wait_for(lambda: max(system_metrics(store, run)) > max(before) + 1)
    run.finish("a digest")
    assert not measures()
