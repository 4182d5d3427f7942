from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lenet5.params import Params
from lenet5.record.family import Member
from lenet5.record.result import Point
from lenet5.search.account import family_of
from lenet5.search.plan import Plan
from lenet5.search.study import Study
from lenet5.search.trials import Kind

from .conftest import row
from .test_confirm import WINNER

ENDS: dict[Kind, tuple[str, str]] = {
    "complete": ("FINISHED", ""),
    "pruned": ("KILLED", "pruned at epoch 2 of 8: not in the better half so far"),
    "stuck": ("KILLED", "ended at epoch 2 of 8: stuck at chance, one class in ten"),
    "diverged": ("FAILED", "the loss became nan"),
    "lost": ("FAILED", "killed by SIGKILL, 3 times"),
}


@pytest.fixture
def study(search: Callable[..., Study]) -> Study:
    """One trial of every end, one in hand and one that was in hand when a driver was killed."""
    study = search()
    for kind, (_, note) in ENDS.items():
        number = study.ask()
        study.add_row(number, row(1, 0.5), 8)
        study.end(number, kind, note, 1, 0.5 if kind == "complete" else None)
    for _ in ("in hand", "unfinished"):
        study.add_row(study.ask(), row(1, 0.4), 8)
    return study


@pytest.fixture
def family(study: Study, plan: Callable[..., Plan], base: Params) -> Callable[..., Any]:
    ended: dict[int, Member] = {}
    return lambda status, found=(): family_of(study, "wide", plan(), base, [len(ENDS)], status, None, found, ended)


def test_how_trials_ended_can_be_told_apart(family: Callable[..., Any], study: Study) -> None:
    *ended, in_hand, unfinished = family("RUNNING").children
    told = {child.tags["trial.state"]: (child.status, child.description) for child in ended}
    assert told == ENDS
    assert (in_hand.status, in_hand.tags["trial.state"], in_hand.description) == ("RUNNING", "running", "under way")
    assert (unfinished.status, unfinished.tags["trial.state"]) == ("KILLED", "unfinished")
    assert "starts again when the sweep goes on" in unfinished.description
    for child, trial in zip([*ended, in_hand, unfinished], study.trials(), strict=True):
        assert child.started == trial.started > 0
        assert child.ended == (trial.ended or 0)
        assert bool(child.figures) == (trial.kind == "complete")
        assert {point.step for point in child.points} == {1}  # of one that is in hand, too
        assert child.tags["gap.is_to"] == "validation images"


def test_the_sweep_says_how_it_stands_and_what_became_of_its_winner(family: Callable[..., Any]) -> None:
    parent = family("KILLED").parent
    assert (parent.status, parent.tags["best_trial"]) == ("KILLED", "0")
    assert parent.tags["gap.is_to"] == "validation images"
    assert parent.figures["trials"] == len(ENDS)
    assert "`lenet5 sweep run` with wide.yaml goes on where it stopped" in parent.description
    confirmed = family("FINISHED", [WINNER]).parent
    assert confirmed.tags["confirmed"] == "2"
    assert "On 8 fresh pairs of seed and split" in confirmed.description


def test_gains_are_of_the_time_of_the_confirmation_and_one_that_diverged_has_none(family: Callable[..., Any]) -> None:
    later = family("FINISHED", [replace(WINNER, gain=0.1, judged=9_000_000_000_000)]).parent
    assert Point("gain_kept", 0.1, 0, 9_000_000_000_000) in later.points
    assert {point.key for point in later.points} == {"gain_claimed", "gain_kept", "gain_low", "gain_p"}
    kept_before = family("FINISHED", [WINNER]).parent  # by a version that did not say when
    assert Point("gain_kept", WINNER.gain, 0, later.ended) in kept_before.points
    diverged = family("FINISHED", [replace(WINNER, gain=0.0, p=1.0, diverged=3)]).parent
    assert not any("gain" in key for key in [*diverged.figures, *(point.key for point in diverged.points)])
    assert "diverged on 3 of 8" in diverged.description


def test_a_trial_that_was_not_given_all_its_params_has_none_yet(
    search: Callable[..., Study], plan: Callable[..., Plan], base: Params
) -> None:
    base = base.model_copy(update={"train": base.train.model_copy(update={"momentum": 0.9})})
    space = {"train.optimizer": ["adamw"], "train.momentum": [0.0]}
    search(space={"train.optimizer": ["adamw"]}).ask()  # as where Ctrl-C comes before the second
    study = search(space=space)
    tell = lambda: family_of(study, "wide", plan(space=space), base, [], "KILLED", None, [], {}).children  # noqa: E731
    (half,) = tell()
    assert (half.status, half.params) == ("KILLED", {})
    study.tried(0)
    (whole,) = tell()
    assert (whole.params["train.optimizer"], whole.params["train.momentum"]) == ("adamw", "0.0")


def test_the_account_of_a_trial_that_has_ended_is_given_once(family: Callable[..., Any], study: Study) -> None:
    before = family("RUNNING").children
    study.add_row(len(ENDS), row(2, 0.3), 8)
    now = family("RUNNING").children
    assert all(one is another for one, another in zip(before[: len(ENDS)], now, strict=False))
    assert {point.step for point in now[len(ENDS)].points} == {1, 2}
