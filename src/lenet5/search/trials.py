"""A trial as everybody but the search itself sees it, and the rules that decide about one by its rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lenet5.params import TrainParams
from lenet5.results.verdict import at_chance
from lenet5.search.engine import Row

Kind: TypeAlias = Literal["running", "complete", "pruned", "stuck", "diverged", "lost"]
"""How a trial is; ``stuck`` at chance, ``lost`` with its process, again and again."""


@dataclass(frozen=True)
class Trial:
    """What was tried and what came of it; ``value`` is the objective's, of complete trials.

    ``rows`` are the history's, an epoch each, with the ``time`` at which they came, in milliseconds since 1970.
    """

    number: int
    tried: Mapping[str, Any]
    kind: Kind
    note: str
    value: float | None
    rows: Sequence[Row]
    started: int
    ended: int | None


def best_first(trials: Sequence[Trial], objective: str) -> list[Trial]:
    """The complete ones of ``trials``, the best at the head; of equals the earlier."""
    sign = 1 if lower_is_better(objective) else -1
    complete = [(sign * trial.value, trial.number, trial) for trial in trials if trial.value is not None]
    return [trial for _, _, trial in sorted(complete, key=lambda entry: entry[:2])]


def lower_is_better(objective: str) -> bool:
    """Whether the objective is a loss."""
    return objective.endswith("loss")


def chosen_row(rows: Sequence[Row], params: TrainParams) -> Row:
    """The row of the weights that a training with these ``rows`` keeps."""
    if params.weights == "last":
        return rows[-1]
    return min(rows, key=lambda row: float(row["validation_loss"]))  # the first of equals, as training has it


def is_over(rows: Sequence[Row], params: TrainParams) -> bool:
    """Whether a training with these ``rows`` has come to its end: its last epoch, or that of its patience."""
    if len(rows) >= params.epochs or not params.patience:
        return len(rows) >= params.epochs
    lowest = min(rows, key=lambda row: float(row["validation_loss"]))
    return len(rows) - int(lowest["epoch"]) >= params.patience


def is_stuck(rows: Sequence[Row]) -> bool:
    """Whether no epoch's weights told more classes apart than one that is said for everything."""
    return all(at_chance(float(row["validation_accuracy"])) for row in rows)
