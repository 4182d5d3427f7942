"""What a look at machine and workspace found out, and how to ask. Imports neither PyTorch nor MLflow."""

import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_PATIENCE = 60


@dataclass(frozen=True)
class Finding:
    """What a check found out: ``level`` is ok, note or problem."""

    level: str
    subject: str
    text: str


def program(subject: str, names: tuple[str, ...], otherwise: str) -> Finding:
    """Which of ``names`` is on PATH and runs; a note that ends with ``otherwise`` where none does."""
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        return Finding("note", subject, f"not found ({', '.join(names)}); {otherwise}")
    said = call(found, "--version")
    if not said:
        return Finding("note", subject, f"{found} does not run; {otherwise}")
    return Finding("ok", subject, f"{found}: {said.splitlines()[0].strip()}")


def installed(name: str) -> str | None:
    """The version of a package, or None where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def call(*command: str) -> str | None:
    """What a program prints, or None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def few(names: list[str]) -> str:
    """The first four of ``names``, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
