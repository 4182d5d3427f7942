import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
import torch

from lenet5.processors import SPINS, busy, use_own_share, wait_politely


@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "infinite"}], ids=str
)
def test_what_a_person_set_about_waiting_stays(own: dict[str, str]) -> None:
    environment = dict(own)
    wait_politely(environment)
    assert environment == own


def test_threads_wait_briefly_where_nobody_said_how() -> None:
    environment = {"OMP_WAIT_POLICY": ""}
    wait_politely(environment)
    assert environment["GOMP_SPINCOUNT"] == str(SPINS)


@pytest.mark.parametrize(
    "module", ["stages/train.py", "stages/evaluate.py", "stages/export.py", "-m lenet5.commands.seeds"]
)
def test_how_threads_wait_is_set_before_pytorch_is_loaded(module: str, repository: Path) -> None:
    watch = (
        "import sys, os, runpy, importlib.abc\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('GOMP_SPINCOUNT')); sys.stdout.flush(); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "sys.path.insert(0, 'stages')\n"
        + (f"import {module.split()[1]}" if module.startswith("-m") else f"runpy.run_path({module!r})")
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", watch], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(SPINS)


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def test_processes_that_run_beside_each_other_share_the_processors(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: threads)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    use_own_share(2)
    assert torch.get_num_threads() == 2
    use_own_share(3)
    assert torch.get_num_threads() == 1


def test_the_quota_of_a_container_is_respected_unless_a_person_said_how_many(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    use_own_share()
    assert torch.get_num_threads() == threads
    for nothing in ("", "0", "abc", "-2"):
        torch.set_num_threads(4)
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        use_own_share()
        assert torch.get_num_threads() == 3
    monkeypatch.setattr(joblib, "cpu_count", lambda: 16)
    use_own_share()
    assert torch.get_num_threads() == 3  # what affinity left is not exceeded


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system knows no affinity")
def test_affinity_is_respected() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from lenet5.processors import use_own_share; use_own_share(); import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("asked", ["0", "abc", "64", "99999999999999999999"])
def test_odd_numbers_of_threads_are_what_libgomp_makes_of_them_and_no_crash(asked: str) -> None:
    code = (
        "from lenet5.processors import use_own_share; use_own_share(); import torch;"
        "torch.ones(2000, 2000).sigmoid_().sum(); print(torch.get_num_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": asked}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert 1 <= int(done.stdout) <= 64


def test_these_tests_wait_politely_too() -> None:
    watch = "import sys, tests.conftest; print('lenet5' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", watch], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"


def test_how_busy_the_machine_is_is_said_where_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for wanting, said in ((5.25, "5.2 threads want 2 processors"), (2.4, "")):
        monkeypatch.setattr(os, "getloadavg", lambda wanting=wanting: (wanting, 0, 0))
        assert busy() == said
    monkeypatch.delattr(os, "getloadavg")
    assert busy() == ""
