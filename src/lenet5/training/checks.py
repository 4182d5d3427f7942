"""What training finds on this machine: GPU, driver, compiler. Asked without PyTorch, which may be what is broken."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from lenet5.errors import UserError
from lenet5.findings import Finding, call, installed, program
from lenet5.params import load_params
from lenet5.training.cards import Driver, NoDriverError, ask_driver
from lenet5.training.compiler import BuildError, build, compiler_command
from lenet5.workspace import LIBRARIES, PARAMS_FILE

_KERNELS = Path(__file__).parent / "kernels"
_PROBE = """#include "vectors.hpp"
extern "C" float squares(const float* x) {
    Whole numbers;
    memcpy(&numbers, x, sizeof numbers);
    return sum_of(numbers * numbers);
}
"""
_TRIAL = "library.squares((ctypes.c_float * 16)())"


def check_cuda() -> Iterator[Finding]:
    """The GPUs, whether their driver is new enough, and whether PyTorch, in a process of its own, can use them."""
    if not find_spec("pynvml"):  # check_packages tells how to install it
        yield Finding("note", "cuda", "cannot be looked into: the package nvidia-ml-py is missing")
        return
    try:
        driver = ask_driver()
    except NoDriverError as error:
        yield _no_gpu(f"no NVIDIA driver answers ({error})")
        return
    yield from _gpus(driver)


def check_compiler() -> Iterator[Finding]:
    """The C++ compiler, which on Linux makes training on a CPU faster where it is there."""
    if sys.platform != "linux":
        return
    slow = "training on a CPU is less than a third as fast; on Debian, `apt-get install g++`"
    name = compiler_command()[0]
    found = program("compiler", (name,), slow)
    broken = _cannot_build() if found.level == "ok" else ""
    yield Finding("note", "compiler", f"{name} {broken}; {slow}") if broken else found


def _cannot_build() -> str:
    """Why the compiler makes no library for this CPU's vectors, as training has it do; empty where it does."""
    there = LIBRARIES.parent.is_dir() and os.access(LIBRARIES.parent, os.W_OK)  # /tmp may be mounted noexec
    with tempfile.TemporaryDirectory(dir=LIBRARIES.parent if there else None) as folder:
        probe = Path(folder, "probe.cpp")
        probe.write_text(_PROBE, encoding="utf-8")
        shutil.copy(_KERNELS / "vectors.hpp", folder)
        try:
            macros = {"ACTIVATION": "relu", "POOLING": "max"}
            build(compiler_command(), probe, macros, Path(folder, "libraries"), _TRIAL)
        except BuildError as error:
            return str(error)
    return ""


def _device_wished() -> str:
    try:
        return load_params(PARAMS_FILE).train.device
    except UserError:  # check_params tells
        return "auto"


def _no_gpu(reason: str) -> Finding:
    if _device_wished() == "cuda":
        return Finding("problem", "cuda", f"{reason}, but train.device is cuda; set it to auto, or mend that")
    return Finding("note", "cuda", f"{reason}; training takes the CPU, which is slower and needs no setting")


def _gpus(driver: Driver) -> Iterator[Finding]:
    needed = installed("cuda-toolkit")
    if needed and driver.cuda < int(needed.split(".")[0]):
        text = f"driver {driver.version} is for CUDA {driver.cuda}, PyTorch needs {needed}; install a newer driver"
        yield Finding("problem", "cuda", text)
    elif not driver.cards:
        yield _no_gpu(f"driver {driver.version}, but no GPU")
    elif (obstacle := _asked("device")) is None:
        yield Finding("problem", "cuda", "PyTorch does not start here; `python -c 'import torch'` says why")
    elif obstacle:
        yield Finding("problem", "cuda", obstacle)
    else:
        yield Finding("ok", "cuda", f"{', '.join(driver.cards)}; driver {driver.version}, CUDA {driver.cuda}")
        if lacks := _asked("inductor"):
            yield Finding("note", "cuda", f"steps are not compiled for the card, for want of {lacks}")


def _asked(module: str) -> str | None:
    """What a module that imports PyTorch says of this machine, in a process of its own; nothing where all is well.

    None where it says nothing because it does not start.
    """
    said = call(sys.executable, "-W", "ignore", "-m", f"lenet5.training.{module}")
    return None if said is None else said.strip()
