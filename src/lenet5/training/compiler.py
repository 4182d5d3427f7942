"""The C++ compiler of this machine, and what it made of a source file, kept for the next process."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lenet5.files import atomic_path, digest

FLAGS = (
    *("-O2", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"),
    "-std=gnu++14",  # enough for what is here, and of the standard library there is less to read
)

_PATIENCE = 60
_LOCK_PATIENCE = 2 * _PATIENCE
_DIGEST_SIZE = hashlib.sha256().digest_size


class BuildError(Exception):
    """Why there is no library, in words that follow the compiler's name."""


def compiler_command() -> list[str]:
    """The command with which C++ is compiled here, its name first: that of ``CXX`` with its options, or g++."""
    return os.environ.get("CXX", "").split() or ["g++"]


def build(compiler: Sequence[str], source: Path, defined: Mapping[str, str], folder: Path, trial: str) -> ctypes.CDLL:
    """The C functions of ``source`` with the macros ``defined``, compiled for this very machine and kept in ``folder``.

    What is kept there is used when source, compiler, macros and CPU are the same and no byte of it has changed. It is
    kept once ``trial``, Python that calls something of ``library``, has run: what CXX says may be for another CPU.
    Raises BuildError.
    """
    import filelock  # late: a GPU does without

    name, *options = compiler
    program = shutil.which(name)
    if program is None:
        raise BuildError("is not installed")
    command = [program, *options, *FLAGS, *(f"-D{name}={value}" for name, value in sorted(defined.items()))]
    try:
        sources = [path.read_bytes() for path in sorted(source.parent.iterdir()) if path.is_file()]
        key = digest(repr((sources, command, _call([program, *options, "--version"]), _cpu())).encode())
        library = folder / f"{source.stem}-{key[:32]}.so"
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(library.with_suffix(".lock"), timeout=_LOCK_PATIENCE):
            if not _is_whole(library):
                with atomic_path(library) as made:
                    _compile(command, source, made.absolute(), trial)
            os.utime(library)  # what nobody takes up for long is removed
        return ctypes.CDLL(str(library.absolute()))
    except OSError as error:
        raise BuildError(f"made nothing that can be used: {error}") from None


def _compile(command: list[str], source: Path, made: Path, trial: str) -> None:
    """The library at ``made``, tried out, with a digest after its end, where a loader does not look."""
    _call([*command, str(source), "-o", str(made)])
    # In a process of its own: a CPU ends one at an instruction that it does not have.
    code = f"import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); {trial}"
    try:
        _call([sys.executable, "-I", "-c", code, str(made)])
    except BuildError as error:
        raise BuildError(f"made nothing that can be used: tried out, it {error}") from None
    content = made.read_bytes()
    made.write_bytes(content + hashlib.sha256(content).digest())


def _is_whole(library: Path) -> bool:
    content = library.read_bytes() if library.is_file() else b""
    return len(content) > _DIGEST_SIZE and hashlib.sha256(content[:-_DIGEST_SIZE]).digest() == content[-_DIGEST_SIZE:]


def _call(command: list[str]) -> bytes:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, timeout=_PATIENCE, env=os.environ | {"LC_ALL": "C"}
        ).stdout
    except subprocess.TimeoutExpired:
        raise BuildError(f"did not answer within {_PATIENCE} s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        reasons = [*(line for line in said if "error:" in line.lower()), *said, f"exit status {error.returncode}"]
        raise BuildError(f"failed: {reasons[0]}") from None


def _cpu() -> str:
    """The processor and what it can do, which decides what -march=native means."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.is_file() else []
    marks = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return repr((platform.machine(), sorted({line for line in lines if line.startswith(marks)})))
