"""Two results side by side: what was set otherwise, what came of it, and whether that is more than luck."""

import html
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lenet5.errors import UserError
from lenet5.fashion_mnist import CLASSES
from lenet5.files import read_json, write_bytes
from lenet5.lineage import data_digest
from lenet5.outs import EVALUATION, PREDICTIONS
from lenet5.params import Params, load_params
from lenet5.promotion import mcnemar
from lenet5.record import Measured, flat_params, read_predictions
from lenet5.workspace import LOCK_FILE, PARAMS_FILE

FIRST, SECOND = "A", "B"
_DIFFERENCE = f"{SECOND} - {FIRST}"

WORKSPACE, CHAMPION = "workspace", "champion"

_RECORDED = ("kernel_check", "data", "model", "train", "evaluate", "export")
_OF_STAGE = {
    "kernel_check": ("kernel_check",),
    "evaluate": ("data", "model", "train", "evaluate"),
    "export": ("model", "export"),
}


class Kind(NamedTuple):
    """How a figure is written, and whether more of it is better (+1), worse (-1) or neither (0)."""

    scale: float
    digits: int
    better: int


_SHARE, _GAP, _LOSS, _EPOCH, _F1 = Kind(100, 2, 1), Kind(100, 2, -1), Kind(1, 3, -1), Kind(1, 0, 0), Kind(1, 3, 1)

_FIGURES: Mapping[str, Sequence[tuple[str, tuple[str, ...], Kind]]] = {
    "Figures with their intervals (accuracies in %)": [
        *((f"{split} accuracy", (split, "accuracy"), _SHARE) for split in ("test", "validation")),
        ("train accuracy", ("train", "accuracy"), _SHARE._replace(better=0)),
        *((f"{split} loss", (split, "loss"), _LOSS) for split in ("test", "validation")),
        ("train loss", ("train", "loss"), _LOSS._replace(better=0)),
        ("accuracy gap, points", ("gap", "accuracy"), _GAP),
        ("loss gap", ("gap", "loss"), _LOSS),
        ("calibration error, %", ("calibration_error",), _GAP),
        ("onset of overfitting", ("onset_of_overfitting",), _EPOCH),
    ],
    "F1 on the test images": [(name, ("classes", name, "f1"), _F1) for name in CLASSES],
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
class Verdict:
    """McNemar's exact test on the test images that only one of the two classifies rightly."""

    first_only: int
    second_only: int
    p_value: float
    text: str


@dataclass(frozen=True)
class Comparison:
    """Everything the terminal and the page show of two results."""

    names: tuple[str, str]
    params: list[tuple[str, str, str]]
    figures: dict[str, list[Row]]
    verdict: Verdict


def compare(first: str, second: str, page: Path | None) -> int:
    """Print the comparison of two results, and write it as a page where ``page`` is given.

    Each is a run's id or name, ``models:/...``, ``champion`` or ``workspace``. Raises UserError where one is unknown
    or incomplete, or they were measured on different images.
    """
    params = load_params(PARAMS_FILE)
    comparison = compare_results(_read(first, params), _read(second, params), params.register_.alpha)
    if page:
        _write(page, to_html(comparison))
    show(comparison, Console(markup=False, highlight=False))
    return 0


def compare_results(first: Measured, second: Measured, alpha: float) -> Comparison:
    """Set two results side by side. Raises UserError where they were measured on different test images."""
    if first.data_digest != second.data_digest or not first.predictions["true"].equals(second.predictions["true"]):
        raise UserError(f"{first.name} and {second.name} were measured on different test images: no comparison is fair")
    names = sorted(first.params.keys() | second.params.keys())
    values = [(name, first.params.get(name, "-"), second.params.get(name, "-")) for name in names]
    return Comparison(
        names=(first.name, second.name),
        params=[entry for entry in values if entry[1] != entry[2]],
        figures={
            title: [_row(*figure, first.evaluation, second.evaluation) for figure in figures]
            for title, figures in _FIGURES.items()
        },
        verdict=judge(first, second, alpha),
    )


def judge(first: Measured, second: Measured, alpha: float) -> Verdict:
    """Whether one of the two is better on the same test images by more than luck, at significance ``alpha``."""
    right, other = (side.predictions["true"] == side.predictions["predicted"] for side in (first, second))
    first_only, second_only = int((right & ~other).sum()), int((other & ~right).sum())
    p_value = mcnemar(first_only, second_only)
    conclusion = "Neither is better"
    if first_only != second_only:
        better = SECOND if second_only > first_only else FIRST
        conclusion = f"{better} is better, by more than luck" if p_value <= alpha else "The difference may well be luck"
    text = (
        f"{conclusion}: of {len(right):,} test images {first_only:,} are right only with {FIRST}, {second_only:,} only "
        f"with {SECOND} (McNemar's exact test, p = {p_value:.2g}, register.alpha {alpha:g})."
    )
    return Verdict(first_only, second_only, p_value, text)


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables and the verdict."""
    for letter, name in zip((FIRST, SECOND), comparison.names, strict=True):
        console.print(f"{letter}  {name}", soft_wrap=True)
    _print_table(console, "Params that differ", ["", FIRST, SECOND], comparison.params or [("none", "", "")])
    styles = {1: "green", -1: "red", 0: ""}
    for title, rows in comparison.figures.items():
        lines = [(row.name, row.first, row.second, Text(row.difference, styles[row.better])) for row in rows]
        _print_table(console, title, ["", FIRST, SECOND, _DIFFERENCE], lines)
    console.print(comparison.verdict.text, soft_wrap=True)


def to_html(comparison: Comparison) -> str:
    """The comparison as one page that needs nothing else."""
    marks = {1: "better", -1: "worse", 0: ""}
    sections = [
        _html_table("Params that differ", ["", FIRST, SECOND], [_html_row(entry) for entry in comparison.params])
    ]
    for title, rows in comparison.figures.items():
        lines = [_html_row((row.name, row.first, row.second, row.difference), marks[row.better]) for row in rows]
        sections.append(_html_table(title, ["", FIRST, SECOND, _DIFFERENCE], lines))
    page = files("lenet5").joinpath("compare.html").read_text(encoding="utf-8")
    filled = {
        "__FIRST__": html.escape(comparison.names[0]),
        "__SECOND__": html.escape(comparison.names[1]),
        "__VERDICT__": html.escape(comparison.verdict.text),
        "__SECTIONS__": "\n".join(sections),
    }
    return re.sub("__[A-Z]+__", lambda found: filled[found.group()], page)


def _write(page: Path, content: str) -> None:
    try:
        write_bytes(page, content.encode())
    except OSError as error:
        raise UserError(f"{page}: cannot be written: {error.strerror}; --html takes a file") from None


def _read(reference: str, params: Params) -> Measured:
    if reference == WORKSPACE:
        return _read_workspace(params)
    from lenet5 import tracking

    if reference == CHAMPION:
        reference = f"models:/{params.register_.model_name}@champion"
    with tempfile.TemporaryDirectory() as folder:
        return tracking.fetch_measured(reference, params, Path(folder))


def _read_workspace(params: Params) -> Measured:
    """The outs as they lie here. Raises UserError where they are missing, or of other params than params.yaml's."""
    if not LOCK_FILE.is_file():
        raise UserError(f"{WORKSPACE}: the pipeline has not run here yet; `dvc repro`")
    ran, now = _params_of_stages(), params.model_dump(by_alias=True)
    for stage, sections in _OF_STAGE.items():
        used = ran.get(stage, {})
        if any(used.get(section) != now[section] for section in sections):
            raise UserError(f"{WORKSPACE}: {PARAMS_FILE} has changed since {stage} ran; `dvc repro` first")
    return Measured(
        name=WORKSPACE,
        params=flat_params(params, *_RECORDED),
        evaluation=read_json(EVALUATION),
        predictions=read_predictions(PREDICTIONS),
        data_digest=data_digest(),
    )


def _params_of_stages() -> dict[str, Mapping[str, Any]]:
    """The params that each stage last ran with. Raises UserError where dvc.lock is broken."""
    try:
        stages = yaml.safe_load(LOCK_FILE.read_bytes())["stages"]
        return {name: stage.get("params", {}).get(str(PARAMS_FILE), {}) for name, stage in stages.items()}
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        raise UserError(f"{LOCK_FILE}: not a file DVC wrote; `git checkout {LOCK_FILE}`, then `dvc repro`") from None


def _row(name: str, path: Sequence[str], kind: Kind, first: Mapping[str, Any], second: Mapping[str, Any]) -> Row:
    before, after = (_rounded(_find(evaluation, path), kind) for evaluation in (first, second))
    # Of the rounded values, so that a reader finds the table to add up.
    difference = None if before is None or after is None else after - before
    return Row(
        name=name,
        first=_written(first, path, kind),
        second=_written(second, path, kind),
        difference="" if difference is None else f"{difference:+.{kind.digits}f}" if difference else "same",
        better=kind.better * ((difference or 0) > 0) - kind.better * ((difference or 0) < 0),
    )


def _written(evaluation: Mapping[str, Any], path: Sequence[str], kind: Kind) -> str:
    *parents, last = path
    value, low, high = (_rounded(_find(evaluation, [*parents, last + end]), kind) for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    interval = "" if low is None or high is None else f" [{low:.{kind.digits}f}, {high:.{kind.digits}f}]"
    return f"{value:.{kind.digits}f}{interval}"


def _rounded(value: float | None, kind: Kind) -> float | None:
    return None if value is None else round(value * kind.scale, kind.digits)


def _find(evaluation: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number at ``path``; None where there is none, as without validation images."""
    found: Any = evaluation
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def _print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    table = Table(*columns, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", style="bold")
    console.print(table)


def _html_row(cells: Sequence[str], mark: str = "") -> str:
    name, *values, last = map(html.escape, cells)
    middle = "".join(f"<td>{value}</td>" for value in values)
    return f'<tr><th scope="row">{name}</th>{middle}<td class="{mark}">{last}</td></tr>'


def _html_table(title: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "\n".join(rows) or f'<tr><td colspan="{len(columns)}">none</td></tr>'
    return f"<h2>{title}</h2>\n<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
