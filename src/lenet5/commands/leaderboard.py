"""Any number of results, the best first, each beside the one that was named first."""

import base64
import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lenet5.commands.tables import (
    GAP,
    MARKS,
    SHARE,
    STYLES,
    find,
    html_page,
    html_row,
    html_table,
    print_table,
    written,
)
from lenet5.errors import UserError
from lenet5.record.promotion import discordant, mcnemar, told_p
from lenet5.record.result import Measured
from lenet5.results.figures import draw_comparison
from lenet5.search.luck import holm

_TEST = ("test", "accuracy")
MOST = len(string.ascii_uppercase)
_COLUMNS = {
    "test accuracy, %": (_TEST, SHARE),
    "validation": (("validation", "accuracy"), SHARE),
    "gap": (("gap", "accuracy"), GAP),
}


@dataclass(frozen=True)
class Standing:
    """A result's place: its figures as text, and how it compares with the first; ``better`` as in ``Kind``."""

    letter: str
    figures: Sequence[str]
    against: str
    better: int


@dataclass(frozen=True)
class Leaderboard:
    """Everything the terminal and the page show of several ``results``, by letter."""

    results: Mapping[str, Measured]
    standings: Sequence[Standing]
    params: Sequence[Sequence[str]]
    explanation: str

    @property
    def names(self) -> dict[str, str]:
        """The results' names, by letter."""
        return {letter: one.name for letter, one in self.results.items()}


def rank(results: Sequence[Measured], alpha: float) -> Leaderboard:
    """Order results by their test accuracy. Raises UserError where they were measured on different test images."""
    if len(results) > MOST:
        raise UserError(f"{len(results)} results; `lenet5 compare` takes {MOST} at most")
    lettered = dict(zip(string.ascii_uppercase, results, strict=False))
    first = results[0]
    for other in results[1:]:
        refuse_other_images(first, other)
    counts = {letter: discordant(first.predictions, one.predictions) for letter, one in lettered.items()}
    others = list(lettered)[1:]
    p_values = dict(zip(others, holm([mcnemar(*counts[letter]) for letter in others]), strict=True))
    evaluations, note = with_gaps_to_the_same(lettered)
    standings = [
        Standing(
            letter,
            [written(_bare(one, column), path, kind) for column, (path, kind) in _COLUMNS.items()],
            *_against(counts[letter], p_values.get(letter), alpha),
        )
        for letter, one in sorted(evaluations.items(), key=lambda entry: -(find(entry[1], _TEST) or 0))
    ]
    return Leaderboard(
        results=lettered,
        standings=standings,
        params=params_that_differ(results),
        explanation=(
            f"Accuracies in %, the accuracy gap in points. Against A: of {len(first.predictions):,} test images, those "
            f"right only with the other, those right only with A, and the p-value of McNemar's exact test, corrected "
            f"by Holm's method for {len(others)} {'tests' if len(others) > 1 else 'test'}. Coloured: more than luck at "
            f"register.alpha {alpha:g}. {note}".rstrip()
        ),
    )


def refuse_other_images(first: Measured, second: Measured) -> None:
    """Raise UserError where two results were measured on different test images."""
    if first.data_digest != second.data_digest or not first.predictions["true"].equals(second.predictions["true"]):
        raise UserError(f"{first.name} and {second.name} were measured on different test images: no comparison is fair")


def params_that_differ(results: Sequence[Measured]) -> list[list[str]]:
    """The names of the params in which ``results`` differ, with the value of each."""
    names = sorted(set().union(*(one.params for one in results)))
    rows = [[name, *(one.params.get(name, "-") for one in results)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def with_gaps_to_the_same(results: Mapping[str, Measured]) -> tuple[dict[str, Mapping[str, Any]], str]:
    """The evaluations by letter, with gaps to one kind of images; and what a reader has to know of these, if anything.

    A gap to validation images and one to test images are two things.
    """
    evaluations = {letter: one.evaluation for letter, one in results.items()}
    bare = [letter for letter, evaluation in evaluations.items() if "validation" not in evaluation]
    if not bare:
        return evaluations, ""
    kept = f"{' and '.join(bare)} held no images out for validation"
    return {letter: {**one, "gap": one.get("gap_test", one["gap"])} for letter, one in evaluations.items()}, (
        f"{kept}: no onset of overfitting can be told, and all gaps are those from training to test images."
    )


def show_board(board: Leaderboard, console: Console) -> None:
    """Print the leaderboard and what sets its results apart."""
    for letter, name in board.names.items():
        console.print(f"{letter}  {name}", soft_wrap=True)
    rows: list[Sequence[str | Text]] = [
        [one.letter, *one.figures, Text(one.against, STYLES[one.better])] for one in board.standings
    ]
    print_table(console, "The best first", ["", *_COLUMNS, "against A"], rows)
    print_table(console, "Params that differ", ["", *board.names], board.params or [("none",)])
    console.print(board.explanation, soft_wrap=True)


def board_page(board: Leaderboard) -> str:
    """The leaderboard with the curves of all as one page that needs nothing else."""
    rows = [html_row([one.letter, *one.figures, one.against], MARKS[one.better]) for one in board.standings]
    params = [html_row(row) for row in board.params]
    sections = [
        html_table("The best first", ["", *_COLUMNS, "against A"], rows),
        curves_section(board.results),
        html_table("Params that differ", ["", *board.names], params),
    ]
    return html_page(board.names, board.explanation, sections)


def curves_section(results: Mapping[str, Measured]) -> str:
    """The curves of results, by letter, in one picture."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "curves.png")
        draw_comparison(picture, {letter: one.history for letter, one in results.items()})
        data = base64.b64encode(picture.read_bytes()).decode()
    alternative = "Loss and accuracy of each result by epoch"
    return f'<h2>Curves</h2>\n<div><img alt="{alternative}" src="data:image/png;base64,{data}"></div>'


def _bare(evaluation: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    """The evaluation; without intervals but for the test accuracy, so that the table fits a terminal."""
    if column == next(iter(_COLUMNS)):
        return evaluation
    return {
        name: {key: value for key, value in figures.items() if not key.endswith(("_low", "_high"))}
        if isinstance(figures, Mapping)
        else figures
        for name, figures in evaluation.items()
    }


def _against(counts: tuple[int, int], p_value: float | None, alpha: float) -> tuple[str, int]:
    if p_value is None:
        return "", 0
    first_only, other_only = counts
    better = (other_only > first_only) - (other_only < first_only)
    return f"+{other_only} -{first_only}, {told_p(p_value)}", better if p_value <= alpha else 0
