"""Who is champion, who was, and why; and a way back."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lenet5.errors import UserError
from lenet5.params import load_params
from lenet5.record.champions import Reign, history, move_back, move_to
from lenet5.workspace import PARAMS_FILE


def champion(version: int | None, back: bool, reason: str) -> int:
    """Show every champion so far; before that, make ``version`` champion, or with ``back`` the one before.

    Raises UserError where there is none to show or to go back to, or where a reason comes without a change.
    """
    params = load_params(PARAMS_FILE)
    if version is not None and back:
        raise UserError("a version and --back are two changes; give one of them (`lenet5 champion --help`)")
    if reason and version is None and not back:
        raise UserError("--reason is of a change; give a version or --back with it (`lenet5 champion --help`)")
    if back:
        moved = move_back(params, reason)
    elif version is not None:
        moved = move_to(params, str(version), reason)
    else:
        moved = None
    reigns = history(params)
    if not reigns:
        raise UserError(f"{params.register_.model_name}: no champion so far; `lenet5 champion VERSION` makes one")
    if moved:
        print(f"{params.register_.model_name} version {moved.version} is champion: {moved.reason}")
    _show(reigns)
    return 0


def _show(reigns: Sequence[Reign]) -> None:
    table = Table("since (UTC)", "version", "test accuracy", "why", box=SIMPLE_HEAD)
    for column in table.columns[:3]:
        column.no_wrap = True
    table.columns[3].overflow = "fold"
    for one in reversed(reigns):
        table.add_row(one.since[:16], f"{one.version}{' *' if one.is_champion else ''}", one.accuracy, one.reason)
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print("* is champion now" if reigns[-1].is_champion else "Nobody is champion now.")
