"""A container's share of the processors, as a real control group gives it: `docker run --cpus 1`, or Kubernetes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GROUPS = Path("/sys/fs/cgroup")
TOLD = "from lenet5.processors import use_own_share; use_own_share(); import torch; print(torch.get_num_threads())"


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group whose processes get the time of one processor."""
    first_version = (GROUPS / "cpu").is_dir()
    group = GROUPS / ("cpu" if first_version else "") / f"lenet5-test-{os.getpid()}"
    quota, text = ("cpu.cfs_quota_us", "100000") if first_version else ("cpu.max", "100000 100000")
    try:
        group.mkdir()
        (group / quota).write_text(text)
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"this system lets nobody make a control group of processors ({error})")
    yield group
    group.rmdir()


@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare, from util-linux, is not installed")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor, which nobody can be denied a part of")
def test_a_training_takes_the_processors_that_its_container_may_use(group: Path) -> None:
    # A container sees its own group in the place of all groups.
    script = (
        f"echo $$ > {group}/cgroup.procs && mount --bind {group} {group.parent} && exec {sys.executable} -c '{TOLD}'"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
