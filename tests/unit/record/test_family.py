import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lenet5.record.family import Family, Member, Mirror
from lenet5.record.family_runs import FamilyRuns
from lenet5.record.lineage import Code
from lenet5.record.result import Point
from lenet5.record.store import Store

CODE = Code("", "", "", "")


def child(key: str, epochs: int, **changes: object) -> Member:
    points = [Point("loss/validation", 1 / epoch, epoch, 1000 + epoch) for epoch in range(1, epochs + 1)]
    begun = Member(key, f"trial-{key}", "RUNNING", {"train.lr": key}, {"trial.state": "running"}, "under way", points)
    return replace(begun, **changes)


def family(*children: Member, **changes: object) -> Family:
    parent = Member("a-key", "sweep-wide", "RUNNING", {"train.epochs": "3"}, {"sweep": "wide"}, "going on")
    return Family(replace(parent, **changes), children)


def points(workspace: Path) -> list[tuple[str, int, float]]:
    """Every point there is of every run, as (run's name, step, value)."""
    with sqlite3.connect(workspace / "mlflow.db") as database:
        found = database.execute(
            "select name, step, value from metrics join runs using (run_uuid) where key = 'loss/validation'"
        )
        return sorted(found.fetchall())


def sender(store: Store) -> Callable[[Family], None]:
    runs = FamilyRuns(store, {"mlflow.user": "a-person"}, CODE)
    return lambda told: runs.send(told, lambda: None)


def test_a_family_is_sent_as_it_grows_and_again_by_another_process_without_a_double(
    workspace: Path, store: Store
) -> None:
    send = sender(store)
    send(family(child("0", 1)))
    send(family(child("0", 2), child("1", 1)))
    ended = {"tags": {"trial.state": "complete"}, "description": "", "figures": {"validation_loss": 0.5}, "ended": 9000}
    whole = [
        child("0", 3, status="FINISHED", **ended),
        child("1", 1, status="KILLED", tags={"trial.state": "unfinished"}),
    ]
    another = sender(store)  # as after kill -9 and a start of the same command
    another(family(*whole, status="KILLED"))
    one_more = sender(store)
    one_more(family(whole[0], child("1", 2)))
    assert points(workspace) == [
        ("trial-0", 1, 1.0),
        ("trial-0", 2, 0.5),
        ("trial-0", 3, 1 / 3),
        ("trial-1", 1, 1.0),
        ("trial-1", 2, 0.5),
    ]
    runs = store.client.search_runs([store.experiment_id], order_by=["attributes.run_name ASC"])
    assert [run.info.run_name for run in runs] == ["sweep-wide", "trial-0", "trial-1"]
    assert [run.info.status for run in runs] == ["RUNNING", "FINISHED", "RUNNING"]
    parent, first, second = runs
    assert first.data.metrics["validation_loss"] == 0.5
    assert first.info.end_time == 9000
    assert {run.data.tags["mlflow.parentRunId"] for run in (first, second)} == {parent.info.run_id}
    assert [run.data.tags["trial.state"] for run in (first, second)] == ["complete", "running"]
    assert (first.data.params, parent.data.params) == ({"train.lr": "0"}, {"train.epochs": "3"})


def test_a_child_that_ended_with_other_figures_and_params_than_its_run_holds_has_a_run_of_its_own(store: Store) -> None:
    def ended(key: str, losses: list[float]) -> Member:
        curve = [Point("loss/validation", loss, epoch, 5000) for epoch, loss in enumerate(losses, 1)]
        figures = {"validation_loss": min(losses)}
        return child(key, 0, points=curve, status="FINISHED", params={"train.device": "cuda"}, figures=figures, ended=9)

    sender(store)(family(child("0", 3)))  # and went on elsewhere
    sender(store)(family(ended("0", [0.9, 0.45])))
    sender(store)(family(ended("0", [0.9, 0.45])))
    sender(store)(family(ended("0", [0.8, 0.4])))  # the journal came back from a copy, and this trial is another
    runs = store.client.search_runs([store.experiment_id], "attributes.run_name = 'trial-0'")
    assert [run.data.metrics["validation_loss"] for run in runs] == [0.4]
    assert [run.data.params for run in runs] == [{"train.device": "cuda"}]
    assert [one.value for one in store.client.get_metric_history(runs[0].info.run_id, "loss/validation")] == [0.8, 0.4]


def test_of_two_confirmations_the_later_is_shown_and_a_repetition_doubles_nothing(store: Store) -> None:
    def confirmed(gain: float, when: int) -> Family:
        return family(points=[Point("gain_kept", gain, 0, when)], status="FINISHED", figures={"trials": 1}, ended=500)

    sender(store)(confirmed(0.012, 1000))
    send = sender(store)  # another command, later
    send(confirmed(0.010, 2000))
    send(confirmed(0.009, 3000))
    sender(store)(confirmed(0.009, 3000))
    (run,) = store.client.search_runs([store.experiment_id])
    assert (run.data.metrics, run.info.end_time) == ({"gain_kept": 0.009, "trials": 1}, 500)
    history = store.client.get_metric_history(run.info.run_id, "gain_kept")
    assert sorted(one.value for one in history) == [0.009, 0.010, 0.012]


@pytest.mark.parametrize("reconnected", [False, True], ids=["the same connection", "another connection"])
def test_of_two_runs_that_a_lost_answer_has_made_one_stays(workspace: Path, store: Store, reconnected: bool) -> None:
    send = sender(store)
    send(family(child("0", 1)))
    for run in store.client.search_runs([store.experiment_id]):  # as a request that is done twice
        store.create_run(run.info.run_name, run.data.tags, {}, CODE)
    (sender(store) if reconnected else send)(family(child("0", 2, status="FINISHED"), status="FINISHED"))
    left = store.client.search_runs([store.experiment_id], order_by=["attributes.run_name ASC"])
    assert [(run.info.run_name, run.info.status) for run in left] == [
        ("sweep-wide", "FINISHED"),
        ("trial-0", "FINISHED"),
    ]
    assert left[1].data.tags["mlflow.parentRunId"] == left[0].info.run_id
    assert points(workspace) == [("trial-0", 1, 1.0), ("trial-0", 2, 0.5)]


class Flaky:
    """Runs of a server that can be away."""

    def __init__(self) -> None:
        self.away, self.asked, self.got = True, 0, threading.Event()
        self.families: list[Family] = []

    def send(self, told: Family, arrived: Callable[[], None]) -> None:
        self.asked += 1
        if self.away:
            raise OSError("https://a-user:a-secret@example.org is away")
        self.families.append(told)
        arrived()
        self.got.set()


def test_a_server_that_is_away_is_said_once_and_gets_the_last_word_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Flaky()
    with Mirror(lambda: runs, "the same command") as mirror:
        mirror.show(family(child("0", 1)))
        while not runs.asked:
            time.sleep(0.01)
        runs.away = False
        mirror.show(family(child("0", 2)))
    assert runs.families[-1] == family(child("0", 2))
    behind, back = capsys.readouterr().err.splitlines()
    assert behind == "MLflow is behind, the work goes on and nothing is lost (https://example.org is away)"
    assert back == "MLflow is back and has every point"


def test_one_that_stays_away_holds_nobody_up_and_how_to_send_the_rest_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Flaky()
    began = time.monotonic()
    with Mirror(lambda: runs, "`lenet5 sweep run`") as mirror:
        mirror.show(family(child("0", 1)))
    assert time.monotonic() - began < 5
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "MLflow has not got everything yet; `lenet5 sweep run` sends the rest"
    )
