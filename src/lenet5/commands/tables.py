"""Figures as people read them: numbers with intervals, tables in the terminal and on a page."""

import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Kind(NamedTuple):
    """How a figure is written, and whether more of it is better (+1), worse (-1) or neither (0)."""

    scale: float
    digits: int
    better: int


STYLES, MARKS = {1: "green", -1: "red", 0: ""}, {1: "better", -1: "worse", 0: ""}
"""Of what is better, worse or neither: in a terminal, and on a page."""

SHARE, GAP, LOSS, EPOCH, F1 = Kind(100, 2, 1), Kind(100, 2, -1), Kind(1, 3, -1), Kind(1, 0, 0), Kind(1, 3, 1)


def written(evaluation: Mapping[str, Any], path: Sequence[str], kind: Kind) -> str:
    """The figure at ``path`` with its interval, if it has one; a dash where there is none."""
    *parents, last = path
    value, low, high = (rounded(find(evaluation, [*parents, last + end]), kind) for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    interval = "" if low is None or high is None else f" [{low:.{kind.digits}f}, {high:.{kind.digits}f}]"
    return f"{value:.{kind.digits}f}{interval}"


def rounded(value: float | None, kind: Kind) -> float | None:
    """``value`` as a reader sees it."""
    return None if value is None else round(value * kind.scale, kind.digits)


def find(evaluation: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number at ``path``; None where there is none, as without validation images."""
    found: Any = evaluation
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """A titled table, its first column to the left; what a terminal has no room for goes on in the next line."""
    table = Table(*columns, box=SIMPLE_HEAD)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", style="bold")
    console.print(table)


def html_row(cells: Sequence[str], mark: str = "") -> str:
    """A row whose last cell is ``mark``: better, worse or nothing."""
    name, *values, last = map(html.escape, cells)
    middle = "".join(f"<td>{value}</td>" for value in values)
    return f'<tr><th scope="row">{name}</th>{middle}<td class="{mark}">{last}</td></tr>'


def html_table(title: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    """A titled table of rows as ``html_row`` gives them."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "\n".join(rows) or f'<tr><td colspan="{len(columns)}">none</td></tr>'
    return f"<h2>{title}</h2>\n<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def html_page(names: Mapping[str, str], verdict: str, sections: Sequence[str]) -> str:
    """One page that needs nothing else, of results with their letters and ``names``."""
    page = files(__package__).joinpath("compare.html").read_text(encoding="utf-8")
    entries = "".join(f"<dt>{letter}</dt><dd>{html.escape(name)}</dd>" for letter, name in names.items())
    filled = {
        "__TITLE__": html.escape(" and ".join(names.values())),
        "__NAMES__": entries,
        "__VERDICT__": html.escape(verdict),
        "__SECTIONS__": "\n".join(sections),
    }
    return re.sub("__[A-Z]+__", lambda found: filled[found.group()], page)
