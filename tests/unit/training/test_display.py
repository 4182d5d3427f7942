import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from lenet5.params import Params
from lenet5.results.history import EpochRow
from lenet5.training import display
from lenet5.training.display import EpochDisplay, kept_weights

ROW = EpochRow(
    epoch=1, learning_rate=0.1, running_loss=0.3, running_accuracy=0.9, train_loss=0.178, train_accuracy=0.9334,
    validation_loss=0.241, validation_accuracy=0.9056, test_loss=0.271, test_accuracy=0.9024, gap_loss=0.063,
    gap_accuracy=0.0278,
)  # fmt: skip
AT_CHANCE = replace(ROW, train_accuracy=0.1, validation_accuracy=0.1, gap_accuracy=-0.0002)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def of(params: Params) -> Callable[..., Params]:
    return lambda **train: params.model_copy(update={"train": params.train.model_copy(update=train)})


def seen(terminal: io.StringIO) -> list[str]:
    """The last state of the line, as it stands on the terminal."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    return [line.rstrip() for line in re.split("[\r\n]+", text) if line.strip()]


def test_one_line_says_that_other_work_has_the_processors(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], of: Callable[..., Params]
) -> None:
    crowd, slow = "4.1 threads want 2 processors", "epoch 3 ran at 25% of the speed reached before"
    for wanting, told in (("", slow), (crowd, crowd)):  # who is there from the first epoch on slows none of them more
        monkeypatch.setattr(display, "busy", lambda wanting=wanting: wanting)
        printed = io.StringIO()
        shown = EpochDisplay(Console(file=printed), of(epochs=5), images=100, rows=[])
        for epoch, seconds in enumerate((1, 2, 4, 8, 1), start=1):
            clock[0] += seconds
            assert shown.show(replace(ROW, epoch=epoch)) == 100 / seconds
        said = [line for line in printed.getvalue().splitlines() if "other programs" in line]
        assert said == [f"other programs slow this one down: {told}"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_epoch_time_left_validation_accuracy_and_gap(
    clock: list[float], of: Callable[..., Params], width: int
) -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, width=width, force_terminal=True)
    with EpochDisplay(console, of(epochs=100), images=100, rows=[]) as shown:
        for epoch in range(1, 38):
            clock[0] += 60 if epoch == 1 else 10  # the first compiles
            shown.show(replace(ROW, epoch=epoch))
    last = seen(terminal)[-1]
    assert last.startswith("epoch 37/100")
    assert last.endswith("10:30 left, validation accuracy 90.56%, accuracy gap 2.8 points")
    assert len(last) <= width
    assert ("━" in last) == (width > 80)


def test_elsewhere_each_epoch_is_a_line_with_its_training_loss_in_nats(
    clock: list[float], of: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    with EpochDisplay(Console(file=io.StringIO()), of(epochs=9, loss_q=0.2), 100, []) as shown:
        clock[0] = 0.5
        shown.show(ROW)  # its running loss is of what is minimised: in nats for no q but 0
    assert capsys.readouterr().out == (
        "epoch 1/9  0:04 left, validation accuracy 90.56%, accuracy gap 2.8 points  "
        "(training 93.34%, test 90.24%, loss 0.1780 nats, 200 images/s)\n"
    )


def test_before_its_first_epoch_it_says_what_it_waits_for_and_going_on_it_shows_where_it_stands(
    of: Callable[..., Params],
) -> None:
    for rows, expected in (
        ([], "epoch 0/100 training the first epoch"),
        ([ROW] * 41, "epoch 41/100 going on; validation accuracy 90.56%, accuracy gap 2.8 points"),
    ):
        terminal = io.StringIO()
        with EpochDisplay(Console(file=terminal, width=80, force_terminal=True), of(epochs=100), 100, rows):
            pass
        assert seen(terminal)[-1] == expected


def test_without_validation_images_the_gap_says_to_what_it_is(clock: list[float], of: Callable[..., Params]) -> None:
    terminal = io.StringIO()
    with EpochDisplay(Console(file=terminal, width=80, force_terminal=True), of(epochs=9), 100, []) as shown:
        clock[0] = 1.0
        shown.show(replace(ROW, validation_loss=None, validation_accuracy=None))
    assert seen(terminal)[-1] == "epoch 1/9 0:08 left, no validation images, accuracy gap to test 2.8 points"


def test_a_training_at_chance_is_told_so_once_while_it_runs(clock: list[float], of: Callable[..., Params]) -> None:
    printed = io.StringIO()
    shown = EpochDisplay(Console(file=printed), of(epochs=20, lr=0.9), images=100, rows=[])
    for epoch in range(1, 13):
        clock[0] += 1
        shown.show(replace(ROW if epoch == 3 else AT_CHANCE, epoch=epoch))
    said = [line for line in printed.getvalue().splitlines() if "chance" in line]
    assert said == [
        "epoch 8: at chance for 5 epochs, right on one image in ten. "
        "Try a smaller `train.lr`: it is 0.9, and relu with sgd learns at about 0.1."
    ]


def test_the_end_says_which_epoch_was_kept_and_how_good_it_is(of: Callable[..., Params]) -> None:
    rows = [replace(ROW, epoch=epoch) for epoch in (1, 2, 3)]
    figures = "validation accuracy 90.56%, accuracy gap 2.8 points, test 90.24%"
    assert kept_weights(rows, 2, of(epochs=3)) == f"kept: epoch 2 of 3 (the lowest validation loss); {figures}"
    assert kept_weights(rows, 3, of(epochs=3, weights="last")) == f"kept: epoch 3 of 3 (the last); {figures}"
    assert "epoch 2 of 3, where train.patience 1 ended training (" in kept_weights(rows, 2, of(epochs=9, patience=1))
    stuck = kept_weights([AT_CHANCE], 1, of(epochs=1, lr=0.9))
    assert stuck.endswith(
        "test 90.24%. That is chance. Try a smaller `train.lr`: it is 0.9, and relu with sgd learns at about 0.1."
    )
