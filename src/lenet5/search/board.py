"""What a person sees of a search: a line a trial, a live table, the leaderboard."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lenet5.search.driver import Running
from lenet5.search.plan import Plan
from lenet5.search.trials import Trial, best_first

SHOWN = 10


@dataclass(frozen=True)
class Standing:
    """How a sweep stands: the trials that have ended, and what is in hand."""

    ended: Sequence[Trial]
    running: Sequence[Running]


def value_of(value: object) -> str:
    """A param's or a figure's value, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def words(tried: Mapping[str, object]) -> str:
    """What a trial tries, in a line."""
    return ", ".join(f"{name.rpartition('.')[2]} {value_of(value)}" for name, value in tried.items())


def trial_line(trial: Trial, plan: Plan) -> str:
    """What came of a trial, and of what."""
    if trial.kind == "complete":
        epochs = f"{len(trial.rows)} epoch{'s' if len(trial.rows) > 1 else ''}"
        told = f"{plan.objective.replace('_', ' ')} {trial.value:.4f} after {epochs}"
    else:
        told = trial.note if trial.kind in ("pruned", "stuck") else f"failed: {trial.note}"
    return f"trial {trial.number}: {told} ({words(trial.tried)})"


def leaderboard(trials: Sequence[Trial], plan: Plan, most: int = SHOWN) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the best trials, the best at the head."""
    header = ["trial", plan.objective.replace("_", " "), *plan.space]
    best = best_first(trials, plan.objective)[:most]
    rows = [[str(one.number), f"{one.value:.4f}", *(value_of(one.tried[name]) for name in plan.space)] for one in best]
    return header, rows


def shortlist(trials: Sequence[Trial], plan: Plan) -> tuple[list[str], list[list[str]]]:
    """The leaderboard for a terminal: a column for each of many params would leave none of them readable."""
    header, rows = leaderboard(trials, plan)
    tried = [words(dict(zip(header[2:], row[2:], strict=True))) for row in rows]
    return [*header[:2], "params"], [[*row[:2], params] for row, params in zip(rows, tried, strict=True)]


def counts(trials: Iterable[Trial]) -> str:
    """How many trials came to which end, in words."""
    kinds = Counter(trial.kind for trial in trials)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()) or "none yet"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """For a terminal."""
    drawn = Table(*header, title=title)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """For MLflow's page and for git."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


class Board:
    """A live table on a terminal, a line a trial everywhere. Use as a context manager around the search."""

    def __init__(self, console: Console, plan: Plan, name: str, before: int) -> None:
        self._console, self._plan, self._name, self._before = console, plan, name, before
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line of its own, above the table."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def show(self, standing: Standing) -> None:
        """Draw how it stands now."""
        if self._live:
            self._live.update(self._draw(standing), refresh=True)

    def _draw(self, standing: Standing) -> Group:
        drawn = Table("trial", "epoch", self._plan.objective.replace("_", " "), "params", title=f"sweep {self._name}")
        for trial in standing.running:
            row = trial.rows[-1] if trial.rows else None
            epoch = f"{row['epoch'] if row else 0}/{trial.params.train.epochs}"
            now = f"{row[self._plan.objective]:.4f}" if row else ""
            drawn.add_row(str(trial.number), epoch, now, words(_tried(trial, self._plan)))
        done = len(standing.ended)
        best = best_first(standing.ended, self._plan.objective)
        told = f"{done} of {self._plan.trials} done"
        if best:
            told += f"; best so far {best[0].value:.4f}, trial {best[0].number}"
        if self._before < done < self._plan.trials:
            left = (time.monotonic() - self._began) / (done - self._before) * (self._plan.trials - done)
            told += f"; about {_duration(left)} left"
        return Group(drawn, Text(told))


def _tried(trial: Running, plan: Plan) -> dict[str, object]:
    from lenet5.params import param_values

    values = param_values(trial.params, "model", "train")
    return {name: values[name] for name in plan.space}


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"
