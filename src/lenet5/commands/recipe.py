"""``lenet5 recipe``: params that belong together, kept in a file and set in ``params.yaml`` in one go."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from lenet5.errors import UserError
from lenet5.files import write_bytes
from lenet5.params import check_params, load_params, parse_yaml
from lenet5.workspace import PARAMS_FILE


class Edit(NamedTuple):
    """One value set: its dotted key, and what was there before."""

    key: str
    before: object
    after: object


def recipe(file: Path) -> int:
    """Set what ``file`` names in ``params.yaml``, and show what that changed."""
    edits = apply(file, PARAMS_FILE)
    table = Table("param", "before", "after")
    for edit in edits:
        table.add_row(edit.key, str(edit.before), str(edit.after))
    console = Console(markup=False)
    console.print(table if edits else f"{PARAMS_FILE} has these values already")
    return 0


def apply(file: Path, params: Path) -> list[Edit]:
    """Set what ``file`` names in ``params``, and leave comments and all else there; the values that changed.

    Raises UserError where either cannot be read, or they do not go together: then ``params`` stays as it was.
    """
    load_params(params)
    text = params.read_bytes()
    wanted = _read(file)
    check_params(_merged(parse_yaml(text, params), wanted), file)
    yaml, windows = _yaml(), b"\r\n" in text
    document = yaml.load(text.replace(b"\r\n", b"\n"))
    edits = [edit for edit in _set(document, wanted) if edit.before != edit.after]
    if edits:
        stream = io.BytesIO()
        yaml.dump(document, stream)
        written = stream.getvalue()
        write_bytes(params, written.replace(b"\n", b"\r\n") if windows else written)
    return edits


def _read(file: Path) -> dict[str, Any]:
    try:
        return parse_yaml(file.read_bytes(), file)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file}: no such file; recipes/ holds those that come with the project") from None


def _merged(content: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        key: _merged(content[key], value)
        for key, value in wanted.items()
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping)
    }
    return {**content, **wanted, **inner}


def _set(place: dict[str, Any], wanted: Mapping[str, Any], above: str = "") -> Iterator[Edit]:
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            yield from _set(place[key], value, f"{above}{key}.")
        else:
            yield Edit(f"{above}{key}", place[key], value)
            place[key] = value


def _yaml() -> YAML:
    """Reads and writes a file so that what is not changed stays as it is written, comments too.

    Lists and null come out as `dvc exp run -S` writes them, so that neither undoes the other's layout.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    return yaml
