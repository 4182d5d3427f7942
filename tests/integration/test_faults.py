"""What the world does to stages: they are killed, their files are damaged, their params are garbled.

The stages are real processes; a fork server spares them the seconds that importing torch takes.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lenet5.fashion_mnist import RAW_DIR, SHA256, is_verified

from .conftest import Project

pytestmark = pytest.mark.soak

Report = Callable[[str], None]
SEED = int(os.environ.get("FAULT_SEED", time.time()))
KILLED_TRAININGS = 20
TRACEBACK = "Traceback (most recent call last)"


class Zygote:
    """The fork server, and what a test wants of it."""

    def __init__(self, project: Project) -> None:
        environment = {name: value for name, value in project.env.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._answer() == "ready"

    def start(self, project: Project, stage: str, **env: str) -> int:
        request = {
            "cwd": str(project.path),
            "script": f"stages/{stage}.py",
            "env": env,
            "output": str(self.log(project)),
        }
        return int(self._ask(request))

    def wait(self, pid: int) -> int:
        return int(self._ask({"wait": pid}))

    def run(self, project: Project, stage: str, **env: str) -> int:
        return self.wait(self.start(project, stage, **env))

    @staticmethod
    def log(project: Project) -> Path:
        return project.path.parent / "stages.log"

    def close(self) -> None:
        assert self._process.stdin
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def dice() -> random.Random:
    print(f"FAULT_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture(scope="module")
def zygote(pristine: Project) -> Iterator[Zygote]:
    server = Zygote(pristine)
    yield server
    server.close()


def digests(project: Project, *names: str) -> list[str]:
    return [hashlib.sha256((project.path / name).read_bytes()).hexdigest() for name in names]


def killed_at_random(zygote: Zygote, project: Project, stage: str, seconds: float) -> bool:
    """Run a stage and SIGKILL it after ``seconds``; whether it was still running."""
    pid = zygote.start(project, stage)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)  # it is ours, and not reaped before `wait`
    return zygote.wait(pid) == -signal.SIGKILL


def test_every_killed_training_ends_byte_identical_in_one_run(
    pristine: Project, tmp_path: Path, zygote: Zygote, dice: random.Random, report: Report
) -> None:
    project = pristine.copy(tmp_path / "project")
    project.shrink({"train.epochs": 4, "model.dropout": 0.2})
    checkpoint = project.path / "src/lenet5/checkpoint.py"
    checkpoint.write_text(re.sub(r"^EVERY_SECONDS = .*$", "EVERY_SECONDS = 0.0", checkpoint.read_text(), flags=re.M))
    zygote.run(project, "train")
    start = time.monotonic()
    assert zygote.run(project, "train") == 0
    whole = time.monotonic() - start
    outs = ("models/lenet5.pth", "plots/history.csv", "metrics/training.json")
    expected = digests(project, *outs)
    identical, kills, resumed = 0, 0, 0
    for _ in range(KILLED_TRAININGS):
        for run in project.runs():
            project.mlflow().delete_run(run.info.run_id)
        for name in outs:
            (project.path / name).unlink(missing_ok=True)
        zygote.log(project).write_text("")
        kills += killed_at_random(zygote, project, "train", dice.uniform(0.2, whole))
        assert zygote.run(project, "train") == 0
        if digests(project, *outs) == expected and not list((project.path / ".lenet5/checkpoints").iterdir()):
            identical += 1
        resumed += "going on after epoch" in zygote.log(project).read_text()
        assert TRACEBACK not in zygote.log(project).read_text()
        (run,) = [run for run in project.runs() if "training" in run.data.tags]
        assert project.steps(run, "loss/test") == [1, 2, 3, 4]
    report(f"{identical} of {KILLED_TRAININGS} trainings byte-identical after {kills} kills; {resumed} went on midway")
    assert identical == KILLED_TRAININGS
    assert kills > KILLED_TRAININGS / 2
    assert resumed


@pytest.mark.parametrize("stage", ["download", "export", "evaluate", "register"])
def test_a_killed_stage_leaves_no_half_file_and_works_the_next_time(
    pristine: Project, tmp_path: Path, zygote: Zygote, dice: random.Random, report: Report, stage: str
) -> None:
    project = pristine.copy(tmp_path / "project")
    if stage == "download":
        shutil.rmtree(project.path / RAW_DIR)
    kills = sum(killed_at_random(zygote, project, stage, dice.uniform(0, 3)) for _ in range(2))
    data = [path for path in (project.path / RAW_DIR).iterdir() if path.name in SHA256]
    assert all(is_verified(path) for path in data)
    assert zygote.run(project, stage, FASHION_MNIST_DIR=project.env["FASHION_MNIST_DIR"]) == 0
    report(f"{stage}: {kills} kills, whole afterwards")
    unchanged = ("models/lenet5.onnx", "models/lenet5.pt2", "metrics/evaluation.json", "plots/predictions.csv")
    assert digests(project, *unchanged) == digests(pristine, *unchanged)
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    assert project.steps(run, "loss/test") == [1, 2]


def test_ctrl_c_ends_within_two_seconds_and_says_how_to_go_on(pristine: Project, tmp_path: Path) -> None:
    project = pristine.copy(tmp_path / "project")
    project.edit({"train.epochs": 50})
    with project.started("dvc", "repro", "train") as process:
        assert process.stdout
        while "epoch 1/" not in process.stdout.readline():
            pass
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait() != 0
    assert time.monotonic() - start < 2
    assert "dvc repro" in rest
    assert TRACEBACK not in rest
    assert digests(project, "models/lenet5.pth") == digests(pristine, "models/lenet5.pth")


def garble_params(content: dict[str, Any], dice: random.Random) -> str:
    """A params.yaml with one edit a person could make in error."""
    section = dice.choice(list(content))
    key = dice.choice(list(content[section]))
    values = [
        None,
        True,
        -1,
        0,
        1,
        2.5,
        1e30,
        float("nan"),
        "",
        "auto",
        "relu",
        [],
        {},
        [1],
        {"a": 1},
        "1e-3",
        "é\u0000",
    ]
    edit = dice.randrange(8)
    if edit == 0:
        del content[section][key]
    elif edit == 1:
        content[section][key + dice.choice("sx_ ")] = content[section].pop(key)
    elif edit == 2:
        content[section] = dice.choice(values)
    elif edit == 3:
        del content[section]
    elif edit == 4:
        content[dice.choice(["trian", 1, None, "lr"])] = content.pop(section)
    elif edit == 5:
        text = yaml.safe_dump(content)
        place = dice.randrange(len(text))
        return text[:place] + dice.choice("{}[]:,&*!|>'\"%@`\t\n-#\\\x00\x07é") + text[place + dice.randrange(3) :]
    else:
        content[section][key] = dice.choice(values)
    return yaml.safe_dump(content)


def test_garbled_params_run_or_are_refused_in_one_line(
    pristine: Project, tmp_path: Path, zygote: Zygote, dice: random.Random, report: Report
) -> None:
    project = pristine.copy(tmp_path / "project")
    good = project.params()
    (project.path / "stages/nothing.py").write_text(NOTHING)
    refused = 0
    for _ in range(500):
        zygote.log(project).write_text("")
        text = garble_params(json.loads(json.dumps(good)), dice)
        (project.path / "params.yaml").write_text(text)
        status = zygote.run(project, "nothing")
        said = zygote.log(project).read_text()
        assert TRACEBACK not in said, text
        assert status in (0, 1), text
        if status:
            refused += 1
            assert len(said.splitlines()) == 1, said
    report(f"500 garbled params files: {refused} refused in one line, {500 - refused} good by chance, 0 tracebacks")
    assert refused > 250


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The content cut, or with some bytes changed, or with bytes put in."""
    place = dice.randrange(len(content))
    kind = dice.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + dice.randbytes(dice.randrange(1, 64)) + content[place:]
    if kind == 2:
        return dice.randbytes(dice.randrange(64))
    changed = bytearray(content)
    changed[place] ^= 1 << dice.randrange(8)
    return bytes(changed)


def test_damaged_files_are_never_used(
    pristine: Project, tmp_path: Path, zygote: Zygote, dice: random.Random, report: Report
) -> None:
    """A script that reads each kind of file as the stages do, in the fork server, without what follows."""
    project = pristine.copy(tmp_path / "project")
    (project.path / "stages/read.py").write_text(READ)
    kinds = {
        "data": (RAW_DIR / "t10k-labels-idx1-ubyte", 125),
        "weights": (Path("models/lenet5.pth"), 125),
        "onnx": (Path("models/lenet5.onnx"), 125),
        "checkpoint": (Path(".lenet5/checkpoints/" + "k" * 32 + ".pt"), 125),
    }
    assert zygote.run(project, "read", READ="save") == 0
    for kind, (path, count) in kinds.items():
        whole = (project.path / path).read_bytes()
        assert zygote.run(project, "read", READ=kind) == 0
        for _ in range(count):
            zygote.log(project).write_text("")
            (project.path / path).write_bytes(damaged(whole, dice))
            assert zygote.run(project, "read", READ=kind) == 1
            said = zygote.log(project).read_text()
            assert TRACEBACK not in said
            assert len(said.splitlines()) == 1, said
        (project.path / path).write_bytes(whole)
    report("500 damaged data, weights, ONNX and checkpoint files: 0 used, 0 tracebacks")


NOTHING = """
from lenet5.stage import run_stage

run_stage("nothing", lambda params: None)
"""

READ = """
import os, sys
from pathlib import Path
import torch
from lenet5.checkpoint import Checkpoint
from lenet5.datasets import load_test
from lenet5.evaluation import load_weights
from lenet5.fashion_mnist import RAW_DIR
from lenet5.files import read_json
from lenet5.outs import TRAINING, WEIGHTS
from lenet5.record import read_result
from lenet5.stage import run_stage
import lenet5.checkpoint

def main(params):
    checkpoint = Checkpoint(Path(".lenet5/checkpoints"), "k" * 64)
    kind = os.environ["READ"]
    if kind == "save":
        lenet5.checkpoint.EVERY_SECONDS = 0
        checkpoint.save_if_due(lambda: {"model": {"weight": torch.ones(1000)}})
    elif kind == "data":
        load_test(RAW_DIR)
    elif kind == "weights":
        load_weights(WEIGHTS, read_json(TRAINING)["weights_sha256"], params.model)
    elif kind == "onnx":
        read_result(params)
    elif checkpoint.load() is None:
        sys.exit(1)

run_stage("read", main)
"""
