"""Results side by side: what was set otherwise, what came of it, and whether that is more than luck."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lenet5.commands.leaderboard import (
    board_page,
    curves_section,
    params_that_differ,
    rank,
    refuse_other_images,
    show_board,
    with_gaps_to_the_same,
)
from lenet5.commands.tables import (
    EPOCH,
    F1,
    GAP,
    LOSS,
    MARKS,
    SHARE,
    STYLES,
    Kind,
    find,
    html_page,
    html_row,
    html_table,
    print_table,
    rounded,
    written,
)
from lenet5.data.fashion_mnist import CLASSES, data_digest
from lenet5.errors import UserError
from lenet5.files import read_json, write_bytes
from lenet5.outs import EVALUATION, HISTORY, PREDICTIONS
from lenet5.params import Params, flat_params, load_params
from lenet5.record.locked import refuse_other_outs, refuse_other_params
from lenet5.record.promotion import discordant, mcnemar, told_p
from lenet5.record.result import RECORDED, Measured, read_predictions
from lenet5.results.history import read_history
from lenet5.workspace import PARAMS_FILE

FIRST, SECOND = "A", "B"
_PAGES = (".html", ".htm")
_DIFFERENCE = f"{SECOND} - {FIRST}"

WORKSPACE = "workspace"
BEST = 5
"""How many are compared when none is named."""

_FIGURES: Mapping[str, Sequence[tuple[str, tuple[str, ...], Kind]]] = {
    "Figures with their intervals (accuracies in %)": [
        *((f"{split} accuracy", (split, "accuracy"), SHARE) for split in ("test", "validation")),
        ("train accuracy", ("train", "accuracy"), SHARE._replace(better=0)),
        *((f"{split} loss", (split, "loss"), LOSS) for split in ("test", "validation")),
        ("train loss", ("train", "loss"), LOSS._replace(better=0)),
        ("accuracy gap, points", ("gap", "accuracy"), GAP),
        ("loss gap", ("gap", "loss"), LOSS),
        ("calibration error, %", ("calibration_error",), GAP),
        ("onset of overfitting", ("onset_of_overfitting",), EPOCH),
    ],
    "F1 on the test images": [(name, ("classes", name, "f1"), F1) for name in CLASSES],
}


@dataclass(frozen=True)
class Row:
    """A figure of both results as text; ``better`` is +1 where the second is better, -1 where worse, 0 otherwise."""

    name: str
    first: str
    second: str
    difference: str
    better: int


@dataclass(frozen=True)
class Comparison:
    """Everything the terminal and the page show of two ``results``, by letter."""

    results: Mapping[str, Measured]
    params: list[list[str]]
    figures: dict[str, list[Row]]
    verdict: str
    note: str


def compare(references: Sequence[str], page: Path | None) -> int:
    """Print the comparison of results, and write it as a page where ``page`` is given.

    Each is a run's id or name, ``models:/...``, ``champion`` or ``workspace``. Two are set side by side, more are
    ranked; one is set beside the workspace; without any it is the best of the experiment. Raises UserError where one
    is unknown or incomplete, or they were measured on different images, or ``page`` is no .html.
    """
    if page and page.suffix.lower() not in _PAGES:
        raise UserError(f"--html {page}: no page is written there; give a file that ends in .html")
    params = load_params(PARAMS_FILE)
    results = _read_all(references, params)
    alpha, console = params.register_.alpha, Console(markup=False, highlight=False)
    if len(results) == len((FIRST, SECOND)):
        first, second = results
        comparison = compare_results(first, second, alpha)
        if page:
            _write(page, to_html(comparison))
        show(comparison, console)
    else:
        board = rank(results, alpha)
        if page:
            _write(page, board_page(board))
        show_board(board, console)
    return 0


def compare_results(first: Measured, second: Measured, alpha: float) -> Comparison:
    """Set two results side by side. Raises UserError where they were measured on different test images."""
    refuse_other_images(first, second)
    results = {FIRST: first, SECOND: second}
    sides, note = with_gaps_to_the_same(results)
    return Comparison(
        results=results,
        params=params_that_differ([first, second]),
        figures={title: [_row(*figure, *sides.values()) for figure in figures] for title, figures in _FIGURES.items()},
        verdict=judge(first, second, alpha),
        note=note,
    )


def judge(first: Measured, second: Measured, alpha: float) -> str:
    """Whether one of the two is better on the same test images by more than luck, at significance ``alpha``.

    McNemar's exact test on the images that only one of them classifies rightly.
    """
    first_only, second_only = discordant(first.predictions, second.predictions)
    p_value = mcnemar(first_only, second_only)
    conclusion = "Neither is better"
    if first_only != second_only:
        better = SECOND if second_only > first_only else FIRST
        conclusion = f"{better} is better, by more than luck" if p_value <= alpha else "The difference may well be luck"
    return (
        f"{conclusion}: of {len(first.predictions):,} test images {first_only:,} are right only with {FIRST}, "
        f"{second_only:,} only with {SECOND} (McNemar's exact test, {told_p(p_value)}, register.alpha {alpha:g})."
    )


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables and the verdict."""
    for letter, one in comparison.results.items():
        console.print(f"{letter}  {one.name}", soft_wrap=True)
    print_table(console, "Params that differ", ["", FIRST, SECOND], comparison.params or [("none", "", "")])
    for title, rows in comparison.figures.items():
        lines = [(row.name, row.first, row.second, Text(row.difference, STYLES[row.better])) for row in rows]
        print_table(console, title, ["", FIRST, SECOND, _DIFFERENCE], lines)
    console.print(comparison.verdict, soft_wrap=True)
    if comparison.note:
        console.print(comparison.note, soft_wrap=True)


def to_html(comparison: Comparison) -> str:
    """The comparison as one page that needs nothing else."""
    sections = [html_table("Params that differ", ["", FIRST, SECOND], [html_row(entry) for entry in comparison.params])]
    for title, rows in comparison.figures.items():
        lines = [html_row((row.name, row.first, row.second, row.difference), MARKS[row.better]) for row in rows]
        sections.append(html_table(title, ["", FIRST, SECOND, _DIFFERENCE], lines))
    sections.append(curves_section(comparison.results))
    names = {letter: one.name for letter, one in comparison.results.items()}
    return html_page(names, f"{comparison.verdict} {comparison.note}".strip(), sections)


def _write(page: Path, content: str) -> None:
    try:
        write_bytes(page, content.encode())
    except OSError as error:
        raise UserError(f"{page}: cannot be written: {error.strerror}; --html takes a file") from None


def _read_all(references: Sequence[str], params: Params) -> list[Measured]:
    if not references:
        from lenet5.record.reading import fetch_best

        return fetch_best(params, BEST)
    return [_read(one, params) for one in (references if len(references) > 1 else (*references, WORKSPACE))]


def _read(reference: str, params: Params) -> Measured:
    if reference == WORKSPACE:
        return _read_workspace(params)
    from lenet5.record.reading import fetch_measured

    with tempfile.TemporaryDirectory() as folder:
        return fetch_measured(reference, params, Path(folder))


def _read_workspace(params: Params) -> Measured:
    """The outs as they lie here. Raises UserError where they are missing, or are not one result of params.yaml."""
    try:
        refuse_other_params(params)
        refuse_other_outs((EVALUATION, PREDICTIONS, HISTORY))
    except UserError as error:
        raise UserError(f"{WORKSPACE}: {error}") from None
    return Measured(
        name=WORKSPACE,
        params=flat_params(params, *RECORDED),
        evaluation=read_json(EVALUATION),
        predictions=read_predictions(PREDICTIONS),
        data_digest=data_digest(),
        history=read_history(HISTORY),
    )


def _row(name: str, path: Sequence[str], kind: Kind, first: Mapping[str, Any], second: Mapping[str, Any]) -> Row:
    before, after = (rounded(find(evaluation, path), kind) for evaluation in (first, second))
    # Of the rounded values, so that a reader finds the table to add up.
    difference = None if before is None or after is None else after - before
    return Row(
        name=name,
        first=written(first, path, kind),
        second=written(second, path, kind),
        difference="" if difference is None else f"{difference:+.{kind.digits}f}" if difference else "same",
        better=kind.better * ((difference or 0) > 0) - kind.better * ((difference or 0) < 0),
    )
