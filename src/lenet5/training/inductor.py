"""What torch.compile needs to build for a card: Triton, the C compiler that Triton calls, and a card it is for."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

OLDEST_CARD = (7, 0)
"""The compute capability from which Triton generates code."""

INSTALLING_TRITON = "`python -m pip install triton-windows`" if sys.platform == "win32" else "it comes with PyTorch"


def lacking() -> str | None:
    """What a step that is compiled for the card would fail for the want of, in words; None where all is there."""
    if torch.cuda.get_device_capability() < OLDEST_CARD:
        oldest = ".".join(map(str, OLDEST_CARD))
        return f"a card of compute capability {oldest} ({torch.cuda.get_device_name()} is older)"
    if not find_spec("triton"):
        return f"the package triton ({INSTALLING_TRITON})"
    if c_compiler() is None and sys.platform != "win32":  # Triton's package for Windows brings one
        return "a C compiler (gcc or clang, or what CC names)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (python3-dev, say)"
    return None


def c_compiler() -> str | None:
    """The C compiler that Triton takes: CC, or gcc, or clang."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")


if __name__ == "__main__":  # `lenet5 doctor` asks, in a process of its own
    print(lacking() or "")
