"""What `lenet5 seeds` shows while it runs: on a terminal a table of all seeds, elsewhere a line for each that ends."""

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lenet5.results.history import EpochRow

_EVERY_SECONDS = 0.2


class SeedsDisplay:
    """Shows how far every seed has come. Use as a context manager around training."""

    def __init__(self, console: Console, seeds: Sequence[int], epochs: int) -> None:
        self._console, self._epochs = console, epochs
        self._last: dict[int, EpochRow | None] = dict.fromkeys(seeds)
        self._finished: dict[int, float] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> "SeedsDisplay":
        if self._console.is_terminal:
            self._live.start()
            self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def epoch(self, seed: int, row: EpochRow) -> None:
        """A seed has come this far."""
        self._last[seed] = row
        self._draw_if_due()

    def finished(self, seed: int, epochs: int, figures: Mapping[str, float]) -> None:
        """A seed is through."""
        self._finished[seed] = figures["test_accuracy"]
        if not self._console.is_terminal:
            print(f"seed {seed}: {epochs} epochs, test accuracy {figures['test_accuracy']:.4f}", flush=True)
        self._draw_if_due()

    def again(self, seeds: Sequence[int]) -> None:
        """What these seeds had reached is lost."""
        self._last |= dict.fromkeys(seeds)

    def say(self, line: str) -> None:
        """Something a person should know."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _draw_if_due(self) -> None:
        if self._live.is_started and time.monotonic() - self._drawn > _EVERY_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        """Those under way first, then those that wait: a low terminal shows what changes."""
        title = f"{len(self._finished)} of {len(self._last)} seeds have finished"
        table = Table("seed", "epoch", "validation loss", "test accuracy", title=title)
        for seed in sorted(self._last, key=lambda seed: (seed in self._finished, self._last[seed] is None, seed)):
            row = self._last[seed]
            if seed in self._finished:
                table.add_row(str(seed), "finished", "", f"{self._finished[seed]:.4f}")
            elif row is None:
                table.add_row(str(seed), "waits", "", "")
            else:
                loss = "" if row.validation_loss is None else f"{row.validation_loss:.4f}"
                table.add_row(str(seed), f"{row.epoch}/{self._epochs}", loss, f"{row.test_accuracy:.4f}")
        return table
