"""What the world does to stages: they are killed, their disk is full, their clock goes back.

The stages are real processes; a fork server spares them the seconds that importing torch takes.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lenet5.fashion_mnist import RAW_DIR, SHA256, is_verified

from .conftest import FAULT_SEED, TRACEBACK, Project, wait_until, zygote

Report = Callable[[str], None]
KILLS = 20
EPOCHS = 6


def digests(project: Project, *names: str) -> list[str]:
    return [hashlib.sha256((project.path / name).read_bytes()).hexdigest() for name in names]


def save_every_epoch(project: Project) -> None:
    file = project.path / "src/lenet5/checkpoint.py"
    file.write_text(re.sub(r"^EVERY_SECONDS = .*$", "EVERY_SECONDS = 0.0", file.read_text(), flags=re.M))


def killed(project: Project, stage: str, seconds: float, said: str = "") -> bool:
    """Run a stage and SIGKILL it ``seconds`` after it has ``said`` something; whether it was still running."""
    log = project.path.parent / "killed.log"
    pid = project.start_stage(stage, log, log)
    wait_until(lambda: said in log.read_text())
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)  # it is ours, and not reaped before `wait`
    status = zygote().wait(pid)
    assert TRACEBACK not in log.read_text()
    return status == -signal.SIGKILL


def seconds_of(project: Project, stage: str) -> float:
    start = time.monotonic()
    project.stage(stage)
    return time.monotonic() - start


def test_every_killed_training_ends_byte_identical_in_one_run(
    pristine: Project, tmp_path: Path, dice: random.Random, report: Report
) -> None:
    project = pristine.copy(tmp_path / "project")
    project.shrink({"train.epochs": EPOCHS, "model.dropout": 0.2})
    save_every_epoch(project)
    project.stage("train")
    whole = seconds_of(project, "train")
    outs = ("models/lenet5.pth", "plots/history.csv", "metrics/training.json")
    expected = digests(project, *outs)
    trainings, kills, resumed = 0, 0, 0
    while kills < KILLS:
        assert trainings < 2 * KILLS, "training ends before it can be killed"
        trainings += 1
        for run in project.runs():
            project.mlflow().delete_run(run.info.run_id)
        for name in outs:
            (project.path / name).unlink(missing_ok=True)
        if trainings % 2:  # much of the time goes by before the first epoch and after the last
            kills += killed(project, "train", dice.uniform(0, 0.1), f"epoch {dice.randrange(2, EPOCHS)}/")
        else:
            kills += killed(project, "train", dice.uniform(0.1, whole))
        resumed += "going on after epoch" in project.stage("train").stdout
        assert digests(project, *outs) == expected
        assert not list((project.path / ".lenet5/checkpoints").iterdir())
        (run,) = project.runs()
        assert "training" in run.data.tags
        assert project.steps(run, "loss/test") == list(range(1, EPOCHS + 1))
    report(
        f"{kills} killed trainings of {kills} ended byte-identical, in one run each; {resumed} went on midway "
        f"(FAULT_SEED={FAULT_SEED})"
    )
    assert resumed > KILLS / 4


def undo(project: Project, stage: str) -> None:
    """Give a stage its whole work again; export and evaluate always have it."""
    if stage == "download":
        shutil.rmtree(project.path / RAW_DIR)
    elif stage == "register":
        (project.path / "mlflow.db").unlink()
        shutil.rmtree(project.path / "mlruns")


@pytest.mark.parametrize("stage", ["download", "export", "evaluate", "register"])
def test_a_killed_stage_leaves_no_half_file_and_works_the_next_time(
    pristine: Project, tmp_path: Path, dice: random.Random, report: Report, stage: str
) -> None:
    project = pristine.copy(tmp_path / "project")
    undo(project, stage)
    whole = seconds_of(project, stage)
    undo(project, stage)
    kills = 0
    while kills < 3:
        if killed(project, stage, dice.uniform(0, whole)):
            kills += 1
        else:
            undo(project, stage)
    data = [path for path in (project.path / RAW_DIR).glob("*") if path.name in SHA256]
    assert all(is_verified(path) for path in data)
    project.stage(stage)
    report(f"{stage}: {kills} kills, whole afterwards")
    unchanged = ("models/lenet5.onnx", "models/lenet5.pt2", "metrics/evaluation.json", "plots/predictions.csv")
    assert digests(project, *unchanged) == digests(pristine, *unchanged)
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params == pristine.runs()[0].data.params
    assert project.steps(run, "loss/test") == [1, 2]


@pytest.mark.soak
def test_ctrl_c_ends_within_two_seconds_and_says_how_to_go_on(pristine: Project, tmp_path: Path) -> None:
    project = pristine.copy(tmp_path / "project")
    project.edit({"train.epochs": 50})
    # Who runs the tests in a shell's background has them ignore Ctrl-C.
    with project.started("env", "--default-signal=INT", "dvc", "repro", "train") as process:
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


@pytest.mark.soak
def test_a_pipeline_killed_whole_goes_on_and_no_lock_of_the_dead_blocks_it(pristine: Project, tmp_path: Path) -> None:
    project = pristine.copy(tmp_path / "project")
    project.shrink({"train.epochs": 30, "train.lr": 0.001})
    save_every_epoch(project)
    with project.started("dvc", "repro") as process:
        assert process.stdout
        while "epoch 3/" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGKILL)
    done = project.run("dvc", "repro", DVC_EXP_NAME="taken-up")
    assert "going on after epoch" in done.stdout
    run = project.runs()[-1]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "taken-up")
    assert run.data.tags["dvc.experiment"] == "taken-up"
    assert project.steps(run, "loss/test") == list(range(1, 31))


def in_own_mounts(project: Project, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount what it likes: nobody else sees it."""
    return project.run("unshare", "--map-root-user", "--mount", "sh", "-ec", script, check=False)


@pytest.fixture(scope="module")
def _mounts() -> None:
    probe = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False
    )
    if probe.returncode:
        pytest.skip("this system lets nobody mount in a namespace of his own (unshare, from util-linux)")


@pytest.mark.soak
@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_a_full_disk_is_one_line_and_the_old_outs_stay(
    pristine: Project, tmp_path: Path, report: Report, stage: str
) -> None:
    project = pristine.copy(tmp_path / "project")
    project.shrink({"train.epochs": 1})
    folders = {"train": "models", "export": "models", "evaluate": "plots"}
    done = in_own_mounts(
        project,
        f"""
        cp -a {folders[stage]} kept
        mount -t tmpfs -o size=$(($(du -sk kept | cut -f1) + 32))k none {folders[stage]}
        cp -a kept/. {folders[stage]}
        status=0
        python stages/{stage}.py || status=$?
        diff -r kept {folders[stage]} >&2
        exit $status
        """,
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{stage}: ")]
    assert "No space left on device" in line
    assert "make room" in line
    assert TRACEBACK not in done.stderr
    assert "diff" not in done.stderr, "an out is not what it was"
    report(f"{stage} on a full tmpfs: one line, old outs whole")


@pytest.mark.soak
@pytest.mark.usefixtures("_mounts")
def test_a_read_only_folder_is_one_line_from_every_stage(pristine: Project, tmp_path: Path, report: Report) -> None:
    project = pristine.copy(tmp_path / "project")
    project.shrink({"train.epochs": 1})
    read_only = "for folder in models metrics plots; do mount --bind -o ro $folder $folder; done"
    for stage in ("kernel_check", "train", "evaluate", "export", "register"):
        done = in_own_mounts(project, f"{read_only}; python stages/{stage}.py")
        assert done.returncode == 1, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{stage}: ")]
        assert "Read-only file system" in line
        assert TRACEBACK not in done.stderr
    report("5 stages on read-only folders: one line each")


@pytest.mark.soak
def test_a_clock_that_goes_back_loses_no_point_and_doubles_none(pristine: Project, tmp_path: Path) -> None:
    project = pristine.copy(tmp_path / "project")
    project.shrink({"train.epochs": EPOCHS})
    save_every_epoch(project)
    (project.path / "stages/late.py").write_text(CLOCK_GOES_BACK)
    log = tmp_path / "late.log"
    pid = project.start_stage("late", log, log)
    wait_until(lambda: "epoch 3/" in log.read_text())
    os.kill(pid, signal.SIGKILL)
    zygote().wait(pid)
    assert "going on after epoch" in project.stage("late").stdout
    for stage in ("evaluate", "export", "register"):
        project.stage(stage)
    (run,) = [run for run in project.runs() if run.data.tags["training"] != pristine.runs()[0].data.tags["training"]]
    assert run.info.status == "FINISHED"
    for curve in ("loss/test", "gap/accuracy", "learning_rate"):
        assert project.steps(run, curve) == list(range(1, EPOCHS + 1))


CLOCK_GOES_BACK = """
import itertools, runpy, time

steps = itertools.count()
time.time_ns = lambda real=time.time_ns: real() - 60_000_000_000 * next(steps)
time.time = lambda: time.time_ns() / 1e9
runpy.run_path("stages/train.py", run_name="__main__")
"""
