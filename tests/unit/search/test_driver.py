from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.search.driver import Driver
from lenet5.search.engine import Ended, Event, Failed, Gained, Job, Lost
from lenet5.search.plan import Plan
from lenet5.search.study import Study

from .conftest import row

Search = Callable[..., Study]
Play = Callable[[Job], list[Event]]


class Stage:
    """An engine whose jobs do what ``play`` says, one event a call."""

    def __init__(self, play: Play, workers: int = 1) -> None:
        self.play, self.workers = play, workers
        self.jobs: dict[str, list[Event]] = {}
        self.started: list[Job] = []
        self.stopped: list[str] = []

    def free(self) -> int:
        return self.workers - len(self.jobs)

    def start(self, job: Job) -> None:
        assert self.free() > 0
        assert job.key not in self.jobs
        self.started.append(job)
        self.jobs[job.key] = self.play(job)

    def stop(self, key: str) -> None:
        self.stopped.append(key)
        del self.jobs[key]

    def events(self, timeout: float) -> Iterator[Event]:
        assert timeout > 0
        for key in list(self.jobs):
            if key in self.jobs:
                event = self.jobs[key].pop(0)
                if not isinstance(event, Gained):
                    del self.jobs[key]
                yield event

    def close(self) -> None:
        pass


def trained(job: Job, losses: list[float], accuracy: float = 0.5) -> list[Event]:
    rows = [Gained(job.key, row(epoch, loss, accuracy)) for epoch, loss in enumerate(losses, 1)]
    return [*rows, Ended(job.key)]


@pytest.fixture
def drive(search: Search, plan: Callable[..., Plan], base: Params) -> Callable[..., tuple[Study, Stage, list[str]]]:
    def begin(play: Play, workers: int = 1, **changes: Any) -> tuple[Study, Stage, list[str]]:
        study, stage, said = search(**changes), Stage(play, workers), []
        driver = Driver(study, plan(**changes), base, stage, lambda number: said.append(f"ended {number}"), said.append)
        while driver.step():
            pass
        assert driver.running == {}
        return study, stage, said

    return begin


def test_every_trial_is_trained_with_its_own_params(drive: Any, base: Params) -> None:
    study, stage, said = drive(lambda job: trained(job, [0.5] * 8), workers=2)
    assert [trial.kind for trial in study.trials()] == ["complete"] * 4
    assert sorted(said) == [f"ended {number}" for number in range(4)]
    for trial, job in zip(study.trials(), stage.started, strict=True):
        params = Params.model_validate(job.params)
        assert params.train.lr == trial.tried["train.lr"]
        assert params.model.activation == trial.tried["model.activation"]
        assert params.train.epochs == 8
        assert params.data == base.data


@pytest.mark.parametrize(("weights", "value"), [("best_validation", 0.2), ("last", 0.25)])
def test_a_trial_is_worth_what_the_weights_it_keeps_are(drive: Any, weights: str, value: float) -> None:
    fixed = {"train.weights": weights, "train.epochs": 4}
    study, *_ = drive(lambda job: trained(job, [0.5, 0.3, 0.2, 0.25]), trials=1, fixed=fixed)
    assert study.trials()[0].value == value


def test_a_worse_trial_is_stopped_and_one_in_its_last_epoch_is_not(drive: Any) -> None:
    study, stage, _ = drive(lambda job: trained(job, [0.1 + int(job.key)] * 8), trials=3)
    assert [trial.kind for trial in study.trials()] == ["complete", "pruned", "pruned"]
    assert study.trials()[1].note == "pruned at epoch 2 of 8: not in the better half so far"
    assert stage.stopped == ["1", "2"]
    short, *_ = drive(lambda job: trained(job, [9.0]), trials=4, fixed={"train.epochs": 1})
    assert short.trials()[3].kind == "complete"


def test_a_trial_that_is_worse_only_in_its_last_epoch_comes_to_its_end(drive: Any) -> None:
    study, stage, _ = drive(lambda job: trained(job, [0.1] * 7 + [0.1 + int(job.key)]), trials=3)
    assert [trial.kind for trial in study.trials()] == ["complete"] * 3
    assert stage.stopped == []


def test_a_trial_out_of_patience_is_in_its_last_epoch(drive: Any) -> None:
    fixed = {"train.epochs": 8, "train.patience": 1}
    study, stage, _ = drive(
        lambda job: trained(job, [0.1] * 8) if job.key == "0" else trained(job, [1.0, 2.0]), trials=2, fixed=fixed
    )
    assert [trial.kind for trial in study.trials()] == ["complete", "complete"]
    assert stage.stopped == []


def test_a_trial_at_chance_is_ended_when_others_may_be_and_said(drive: Any) -> None:
    study, *_ = drive(lambda job: trained(job, [2.3] * 8, accuracy=0.1), trials=1)
    (trial,) = study.trials()
    assert (trial.kind, trial.note) == ("stuck", "ended at epoch 2 of 8: stuck at chance, one class in ten")


def test_a_trial_that_left_chance_goes_on(drive: Any) -> None:
    def play(job: Job) -> list[Event]:
        first, *rest = trained(job, [2.3, 1.0, 0.5, 0.5], accuracy=0.6)
        assert isinstance(first, Gained)
        return [Gained(job.key, {**first.row, "validation_accuracy": 0.1}), *rest]

    study, *_ = drive(play, trials=1)
    assert study.trials()[0].kind == "complete"


def test_a_trial_whose_loss_diverges_has_failed_at_once(drive: Any) -> None:
    study, stage, _ = drive(lambda job: [Failed(job.key, "the loss became nan", hopeless=True)], trials=2)
    assert [(trial.kind, trial.note) for trial in study.trials()] == [("diverged", "the loss became nan")] * 2
    assert len(stage.started) == 2


def test_a_trial_that_takes_its_process_down_three_times_has_failed_and_the_sweep_goes_on(drive: Any) -> None:
    study, stage, said = drive(
        lambda job: [Lost(job.key, "killed")] if job.key == "0" else trained(job, [0.5] * 8), trials=2
    )
    assert [job.key for job in stage.started] == ["0", "0", "0", "1"]
    assert [(trial.kind, trial.note) for trial in study.trials()] == [("lost", "killed, 3 times"), ("complete", "")]
    assert said[:2] == ["trial 0: killed; it starts again"] * 2


def test_a_machine_that_goes_says_nothing_about_its_trial(drive: Any) -> None:
    gone = [[Lost("0", "gone", with_machine=True)] for _ in range(5)]
    plays: list[list[Event]] = [*gone, trained(Job("0", {}), [0.5] * 8)]
    study, stage, _ = drive(lambda _: plays.pop(0), trials=1)
    assert study.trials()[0].kind == "complete"
    assert len(stage.started) == 6
    assert len({str(job.params) for job in stage.started}) == 1


def test_a_worker_that_cannot_work_ends_the_sweep_and_no_trial(drive: Any, search: Search) -> None:
    with pytest.raises(UserError, match="trial 0: no data here"):
        drive(lambda job: [Failed(job.key, "no data here", hopeless=False)])
    assert search().unfinished() == [0]


def test_what_was_not_finished_starts_again_with_its_params_and_no_more_is_asked(drive: Any, search: Search) -> None:
    before = search()
    tried = before.tried(before.ask())
    study, stage, _ = drive(lambda job: trained(job, [0.5] * 8), trials=2)
    assert [job.key for job in stage.started] == ["0", "1"]
    assert stage.started[0].params["train"]["lr"] == tried["train.lr"]
    assert len(study.trials()) == 2
    drive(lambda job: trained(job, [0.5] * 8), trials=2)
    assert len(study.trials()) == 2
