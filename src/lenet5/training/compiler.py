"""The C++ compiler of this machine: whether there is one, and what it makes of a source file."""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")


def compiler_name() -> str:
    """The command with which C++ is compiled here, torch.compile's too."""
    usual = {"darwin": "clang++", "win32": "cl"}
    return os.environ.get("CXX", usual.get(sys.platform, "g++"))


def compiler_found() -> bool:
    """Whether torch.compile can build what it generates."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler_name()) is not None and headers.is_file()


def build(source: Path) -> ctypes.CDLL:
    """The C functions of ``source``, compiled for this very machine and left in memory only.

    Raises subprocess.CalledProcessError where the compiler refuses, OSError where there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, f"{source.stem}.so")
        subprocess.run([compiler_name(), *FLAGS, source, "-o", library], check=True, capture_output=True)
        return ctypes.CDLL(str(library))
