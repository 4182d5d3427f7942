"""The MLflow record as a whole: whether it has what it needs, and results that go from one record to another."""

from pathlib import Path

from lenet5.params import load_params
from lenet5.record import packing, verification
from lenet5.workspace import PARAMS_FILE


def verify() -> int:
    """Print what is missing; the exit status is 1 where a result or an alias cannot be used."""
    status = 0
    for finding in verification.verify(load_params(PARAMS_FILE)):
        print(f"{finding.level:<8}{finding.subject:<8}{finding.text}")
        status = 1 if finding.level == "problem" else status
    return status


def pack(reference: str, file: Path) -> int:
    """Write a result to ``file``. Raises UserError where there is none, or it is not whole."""
    name = packing.pack(reference, load_params(PARAMS_FILE), file)
    size = file.stat().st_size / 1e6
    print(f"{name} is in {file}, {size:.1f} MB; `lenet5 record take {file}` adds it to another record")
    return 0


def take(file: Path) -> int:
    """Add the result in ``file`` to this record. Raises UserError where it is no such file."""
    print(packing.take(file, load_params(PARAMS_FILE)))
    return 0
