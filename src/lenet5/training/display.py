"""What training shows while it runs: a live bar on a terminal, one line an epoch elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lenet5.history import EpochRow
from lenet5.model import Layer


class EpochDisplay:
    """Shows each epoch as it ends. Use as a context manager around training."""

    def __init__(self, console: Console, epochs: int, images: int) -> None:
        self._console = console
        self._epochs = epochs
        self._images = images
        self._since = time.monotonic()
        self._bar = Progress(
            TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=epochs)

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
        validation = "" if row.validation_accuracy is None else f"validation {row.validation_accuracy:.4f}  "
        text = (
            f"loss {row.running_loss:.4f}  train {row.train_accuracy:.4f}  {validation}test {row.test_accuracy:.4f}  "
            f"gap {row.gap_loss:+.4f}  {speed:,.0f} images/s"
        )
        self._bar.update(self._task, completed=row.epoch, description=text)
        if not self._console.is_terminal:
            print(f"epoch {row.epoch}/{self._epochs}  {text}", flush=True)
        return speed


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
