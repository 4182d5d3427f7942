"""The engine lanes on a CPU of another kind: compiled for 64-bit ARM, and run by an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lenet5.training.compiler import FLAGS
from lenet5.training.lanes import SOURCE

PROGRAM = Path(__file__).with_name("lanes_steps.cpp")
ARM = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"


def printed(compiler: str, machine: str, build: Path, activation: str, pooling: str, *runner: str) -> list[str]:
    """What PROGRAM prints, compiled for ``machine``."""
    flags = [flag for flag in FLAGS if flag not in ("-march=native", "-shared", "-fPIC")]
    defined = [f"-DACTIVATION={activation}", f"-DPOOLING={pooling}"]
    command = [compiler, *flags, *defined, f"-march={machine}", f"-I{SOURCE.parent}", str(PROGRAM), "-o", str(build)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return subprocess.run([*runner, str(build)], check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("activation", "pooling"), [("sigmoid", "avg"), ("tanh", "max"), ("relu", "max"), ("leaky_relu", "avg")]
)
def test_steps_have_the_same_bits_on_arm_as_with_avx2(tmp_path: Path, activation: str, pooling: str) -> None:
    if not (shutil.which(ARM) and shutil.which(EMULATOR)):
        pytest.skip(f"no {ARM} or {EMULATOR}; `apt-get install g++-aarch64-linux-gnu qemu-user` on Debian")
    if not {"avx2", "fma"} <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip("this machine has no AVX2 to compare with")
    wide = printed("g++", "haswell", tmp_path / "x86", activation, pooling)
    neon = printed(ARM, "armv8-a", tmp_path / "arm", activation, pooling, EMULATOR, "-L", "/usr/aarch64-linux-gnu")
    assert len(wide) == 1 + 2 * 61_706 + 1, "sums of train, gradients, weights, sums of measure"
    assert neon == wide
