"""Writing files so that a reader finds the old one or the new one, never half of one."""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lenet5.errors import UserError

_LONGEST_FOLDER_NAME = 100  # bytes; a file system takes 255, and some less
_NO_NAMES_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it over ``path`` when the block ends well.

    The new content is on disk before the rename; after an error ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: image and model writers choose their format by it.
    descriptor, name = tempfile.mkstemp(prefix=_beside(path), suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    beside = Path(name)
    try:
        yield beside
        with beside.open("r+b") as written:
            os.fsync(written.fileno())
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say for which file
        raise
    finally:
        beside.unlink(missing_ok=True)


def remove_whole(path: Path) -> None:
    """Delete ``path``, and what processes that were killed while they wrote it left beside it."""
    for one in path.parent.glob("*"):
        if one == path or (one.name.startswith(_beside(path)) and one.suffix == path.suffix):
            one.unlink(missing_ok=True)


def _beside(path: Path) -> str:
    return f".{path.stem}."


def from_home(path: str) -> Path:
    """``path``, its ~ or ~name as a shell reads it; a name that nobody has stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises for such a name


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step."""
    with atomic_path(path) as beside:
        beside.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON that diffs well: indented, NaN refused."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a stage left. Raises UserError where it is missing or not JSON."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON any more ({error}); move it away, and `dvc repro` makes it anew") from None
    return content


def read_trusted(path: Path, sha256: str, stage: str) -> bytes:
    """The content of a file that ``stage`` left. Raises UserError where it is missing or no longer what it was."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro {stage}` makes it") from None
    if digest(content) != sha256:
        raise UserError(f"{path}: not what the stage {stage} left (SHA-256 differs); `dvc repro {stage}` mends it")
    return content


def remove_old(folder: Path) -> None:
    """Delete the files of ``folder`` that were last written more than 30 days ago: nobody took them up again.

    Locks stay: nothing tells when one was last held.
    """
    oldest = time.time() - 30 * 24 * 60 * 60
    for path in folder.glob("*"):
        with suppress(OSError):  # gone already, or in use elsewhere
            if path.suffix != ".lock" and path.stat().st_mtime < oldest:
                path.unlink()


def folder_name(name: str) -> str:
    """A folder's name for what a person calls ``name``: the same, or what is like it and no other name's."""
    plain = re.sub(r"[^\w .+-]", "_", name).strip(" .")
    if (
        name
        and plain == name
        and len(name.encode()) <= _LONGEST_FOLDER_NAME
        and not re.match(_NO_NAMES_ON_WINDOWS, name)
    ):
        return name
    short = plain.encode()[:_LONGEST_FOLDER_NAME].decode(errors="ignore").strip(" .")
    return f"{short}_{digest(name.encode(errors='surrogateescape'))[:8]}"


def digest(content: bytes) -> str:
    """SHA-256 of ``content``, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _umask() -> int:
    # POSIX can only tell the mask by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
