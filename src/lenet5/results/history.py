"""The training history, one row an epoch: what is measured, and the file that holds it."""

import csv
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from lenet5.errors import UserError
from lenet5.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EpochRow:
    """One epoch. Losses in nats, accuracies as fractions; None without validation or test images.

    ``running_*`` accumulate while the weights move, with augmentation and of the loss that is minimised, which is in
    nats only where it is cross-entropy; all others measure the weights at the epoch's end. The gaps compare the
    training sample with the validation images, or with the test images where there are none.
    """

    epoch: int
    learning_rate: float
    running_loss: float
    running_accuracy: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    gap_loss: float
    gap_accuracy: float


class HistoryFile:
    """A CSV file that gains a whole row the moment an epoch ends.

    ``rows`` are those of the epochs before, when a training goes on. An earlier file is left alone until the first
    row comes, and is put back if training then fails.
    """

    def __init__(self, path: Path, rows: Sequence[EpochRow] = ()) -> None:
        self._path = path
        self._rows = rows
        self._earlier: bytes | None = None
        self._started = False

    def __enter__(self) -> "HistoryFile":
        self._earlier = self._path.read_bytes() if self._path.exists() else None
        try:
            for row in self._rows:
                self.append(row)
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._put_back()

    def _put_back(self) -> None:
        """The earlier file, or none, where a row was begun. On a full disk the new one has to make room for it."""
        if self._started:
            self._path.unlink(missing_ok=True)
            if self._earlier is not None:
                write_bytes(self._path, self._earlier)

    def append(self, row: EpochRow) -> None:
        """Write ``row``, after the header if it is the first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        first, self._started = not self._started, True
        with self._path.open("w" if first else "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(EpochRow)], lineterminator="\n")
            if first:
                writer.writeheader()
            writer.writerow(asdict(row))


def read_history(path: Path) -> "pd.DataFrame":
    """The history as a table, NaN where there were no validation images. Raises UserError where it is no such table."""
    return read_table(path, {field.name for field in fields(EpochRow)}, "train")


def read_table(path: Path, columns: Set[str], stage: str) -> "pd.DataFrame":
    """A table that ``stage`` left. Raises UserError where it is missing, damaged, or lacks one of ``columns``."""
    import pandas as pd  # late: training needs none

    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro {stage}` makes it") from None
    except ValueError as error:
        raise UserError(f"{path}: not the table that the stage {stage} left ({error})") from None
    if lacking := columns - set(table.columns):
        raise UserError(f"{path}: not the table that the stage {stage} left (no {', '.join(sorted(lacking))})")
    return table
