"""What training shows while it runs: a live line on a terminal, one line an epoch elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from lenet5.network.lenet5 import Layer
from lenet5.params import Params
from lenet5.processors import SLOWED, busy
from lenet5.results.chance import PATIENCE, ChanceWatch, stuck
from lenet5.results.history import EpochRow
from lenet5.results.verdict import at_chance, points, what_to_try

SLOW = 1 / 3
"""The share of the speed reached before below which other work must have the processors."""
BARE = 90
"""A terminal of so many columns has no room for a bar beside the figures."""


class EpochDisplay:
    """Shows each epoch as it ends; ``rows`` are those of an earlier process. Use as a context manager."""

    def __init__(self, console: Console, params: Params, images: int, rows: Sequence[EpochRow]) -> None:
        self._console, self._params, self._images = console, params, images
        self._epochs = params.train.epochs
        self._since = self._steady_since = time.monotonic()
        self._steady_from, self._first = len(rows), len(rows) + 1
        self._best, self._slowed, self._watch = 0.0, False, ChanceWatch()
        roomy = console.width >= BARE
        bar = [BarColumn(None, table_column=Column(ratio=1))] if roomy else []
        self._bar = Progress(
            TextColumn("epoch {task.completed}/{task.total}"), *bar, TextColumn("{task.description}"),
            console=console, disable=not console.is_terminal, expand=roomy,
        )  # fmt: skip
        waiting = "training the first epoch"
        self._task = self._bar.add_task(
            f"going on; {_figures(rows[-1])}" if rows else waiting, total=self._epochs, completed=len(rows)
        )

    def __enter__(self) -> "EpochDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, row: EpochRow) -> float:
        """Report ``row``; returns images per second since the last report, measuring included."""
        now = time.monotonic()
        speed = self._images / (now - self._since)
        self._since = now
        self._warn_when_slow(row.epoch, speed)
        self._warn_at_chance(row)
        text = f"{self._left(row.epoch, now)}, {_figures(row)}"
        self._bar.update(self._task, completed=row.epoch, description=text)
        if not self._console.is_terminal:
            loss = f"loss {row.train_loss:.4f} nats"
            others = f"training {row.train_accuracy:.2%}, test {row.test_accuracy:.2%}"
            print(f"epoch {row.epoch}/{self._epochs}  {text}  ({others}, {loss}, {speed:,.0f} images/s)", flush=True)
        return speed

    def _left(self, epoch: int, now: float) -> str:
        """The time that the epochs to come will take, each as long as those after the first, which may compile."""
        seconds = (now - self._steady_since) / (epoch - self._steady_from) * (self._epochs - epoch)
        if epoch == self._first:
            self._steady_since, self._steady_from = now, epoch
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"

    def _warn_when_slow(self, epoch: int, speed: float) -> None:
        """Say once that the processors are others' too: an epoch is far slower than one before, or many want them."""
        slow = speed < SLOW * self._best
        seen = f"epoch {epoch} ran at {speed / self._best:.0%} of the speed reached before" if slow else ""
        if (told := "; ".join(filter(None, [seen, busy()]))) and not self._slowed:
            self._slowed = True
            self._console.print(f"{SLOWED}: {told}", soft_wrap=True)
        self._best = max(self._best, speed)

    def _warn_at_chance(self, row: EpochRow) -> None:
        """Say that nothing is being learned, where that has been so for some epochs on end."""
        since = self._watch.at_chance_since(row.epoch, row.train_accuracy)
        if since is not None and row.epoch - since == PATIENCE - 1:
            text = stuck(f"for {PATIENCE} epochs", self._params)
            self._console.print(f"epoch {row.epoch}: {text}", soft_wrap=True, highlight=False)


def kept_weights(rows: Sequence[EpochRow], chosen_epoch: int, params: Params) -> str:
    """Which epoch's weights training has kept and how good they are, in a line."""
    row, last, train = rows[chosen_epoch - 1], len(rows), params.train
    lowest = train.weights == "best_validation" and row.validation_loss is not None
    why = "the lowest validation loss" if lowest else "the last"
    end = f", where train.patience {train.patience} ended training" if last < train.epochs else ""
    chance = f". That is chance. {what_to_try(params)}" if at_chance(row.train_accuracy) else ""
    return f"kept: epoch {chosen_epoch} of {last}{end} ({why}); {_figures(row)}, test {row.test_accuracy:.2%}{chance}"


def _figures(row: EpochRow) -> str:
    """What a person wants to know of an epoch, short enough for a terminal of 80 columns."""
    gap = points(row.gap_accuracy)
    if row.validation_accuracy is None:
        return f"no validation images, accuracy gap to test {gap} points"
    return f"validation accuracy {row.validation_accuracy:.2%}, accuracy gap {gap} points"


def architecture_table(rows: list[Layer]) -> Table:
    """The network, layer by layer, with the sum of its parameters."""
    table = Table("layer", "output shape", "parameters", "receptive field", title="LeNet-5", show_footer=True)
    for row in rows:
        shape = " x ".join(str(size) for size in row.shape)
        table.add_row(row.name, shape, f"{row.parameters:,}", f"{row.receptive_field} x {row.receptive_field}")
    table.columns[0].footer = "total"
    table.columns[2].footer = f"{sum(row.parameters for row in rows):,}"
    for column in table.columns[2:]:
        column.justify = "right"
    return table
