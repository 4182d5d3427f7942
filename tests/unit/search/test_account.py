from collections.abc import Callable
from typing import Any

import pytest

from lenet5.params import Params
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
        study.end(number, kind, note, 0.5 if kind == "complete" else None)
    for _ in ("in hand", "unfinished"):
        study.add_row(study.ask(), row(1, 0.4), 8)
    return study


@pytest.fixture
def family(study: Study, plan: Callable[..., Plan], base: Params) -> Callable[..., Any]:
    return lambda status, found=(): family_of(study, "wide", plan(), base, [len(ENDS)], status, None, found)


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


def test_the_sweep_says_how_it_stands_and_what_became_of_its_winner(family: Callable[..., Any]) -> None:
    parent = family("KILLED").parent
    assert (parent.status, parent.tags["best_trial"]) == ("KILLED", "0")
    assert parent.figures["trials"] == len(ENDS)
    assert "`lenet5 sweep run` with wide.yaml goes on where it stopped" in parent.description
    confirmed = family("FINISHED", [WINNER]).parent
    assert confirmed.tags["confirmed"] == "2"
    assert (confirmed.figures["gain_claimed"], confirmed.figures["gain_kept"]) == (WINNER.claimed, WINNER.gain)
    assert "On 8 fresh pairs of seed and split" in confirmed.description
