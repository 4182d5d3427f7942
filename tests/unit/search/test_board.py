import io
from collections.abc import Callable

import pytest
from rich.console import Console

from lenet5.params import Params
from lenet5.search.board import Board, Standing, counts, leaderboard, markdown, shortlist, table, trial_line
from lenet5.search.driver import Running
from lenet5.search.plan import Plan, trial_params
from lenet5.search.trials import Trial

from .conftest import row

TRIED = {"train.lr": 0.0123456, "model.activation": "relu"}


def trial(number: int, value: float | None, kind: str = "complete", note: str = "") -> Trial:
    return Trial(number, TRIED, kind, note, value, [row(1, 0.5)], 0, 1)  # type: ignore[arg-type]


TRIALS = [trial(0, 0.5), trial(1, 0.25), trial(2, None, "pruned", "pruned at epoch 2 of 8"), trial(3, 0.3)]


def test_a_line_says_what_came_of_a_trial_and_of_what(plan: Callable[..., Plan]) -> None:
    tried = "(lr 0.01235, activation relu)"
    assert trial_line(TRIALS[0], plan()) == f"trial 0: validation loss 0.5000 after 1 epoch {tried}"
    assert trial_line(TRIALS[2], plan()) == f"trial 2: pruned at epoch 2 of 8 {tried}"
    diverged = trial(4, None, "diverged", "the loss became nan")
    assert trial_line(diverged, plan()) == f"trial 4: failed: the loss became nan {tried}"


def test_the_best_are_at_the_head_of_the_leaderboard(plan: Callable[..., Plan]) -> None:
    header, rows = leaderboard(TRIALS, plan(), most=2)
    assert header == ["trial", "validation loss", "train.lr", "model.activation"]
    assert rows == [["1", "0.2500", "0.01235", "relu"], ["3", "0.3000", "0.01235", "relu"]]
    _, highest = leaderboard(TRIALS, plan(objective="validation_accuracy"), most=1)
    assert highest[0][0] == "0"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert counts(TRIALS) == "3 complete, 1 pruned"
    assert counts([]) == "none yet"


def test_a_terminal_of_80_columns_shows_every_value_of_many_params(plan: Callable[..., Plan]) -> None:
    names = ("model.activation", "model.pooling", "train.batch_size", "train.lr", "train.weight_decay", "train.epochs",
             "train.label_smoothing", "train.momentum", "train.augmentation.shift")  # fmt: skip
    wide = plan(space={name: [0.0012345] for name in names})
    best = Trial(0, dict.fromkeys(names, 0.0012345), "complete", "", 0.25, [], 0, 1)
    output = io.StringIO()
    Console(file=output, width=80).print(table("best trials", *shortlist([best], wide)))
    assert "…" not in output.getvalue()
    assert output.getvalue().count("0.001234") == len(names)
    assert "0.2500" in output.getvalue()


def drawn(terminal: bool, plan: Plan, base: Params) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100, color_system=None)
    running = Running(7, trial_params(plan, base, TRIED), [row(1, 0.7), row(2, 0.6)])
    with Board(console, plan, "wide", before=1) as board:
        board.say("trial 0: [done]")
        board.show(Standing(TRIALS[:2], [running]))
    return output.getvalue()


def test_a_terminal_shows_what_runs_the_best_so_far_and_the_time_left(plan: Callable[..., Plan], base: Params) -> None:
    shown = drawn(True, plan(), base)
    assert "trial 0: [done]" in shown
    for told in ("sweep wide", "2/8", "0.6000", "lr 0.01235, activation relu"):
        assert told in shown
    assert "2 of 4 done; best so far 0.2500, trial 1; about a minute left" in shown


@pytest.mark.parametrize("trials", [1, 2])
def test_no_time_is_left_where_no_trial_is(plan: Callable[..., Plan], base: Params, trials: int) -> None:
    assert f"2 of {trials} done; best so far 0.2500, trial 1\n" in drawn(True, plan(trials=trials), base)


def test_elsewhere_there_are_plain_lines_alone(plan: Callable[..., Plan], base: Params) -> None:
    assert drawn(False, plan(), base) == "trial 0: [done]\n"
