"""What the world does to stages: they are killed, their disk is full, their clock goes back.

The stages are real processes; a fork server spares them the seconds that importing torch takes.
"""

import hashlib
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lenet5.data.fashion_mnist import RAW_DIR, SHA256, is_verified

from .conftest import FAULT_SEED, TRACEBACK, Project, ctrl_c, in_own_mounts, least_disturbed, wait_until, zygote

Report = Callable[[str], None]
KILLS = 20
EPOCHS = 6


def digests(project: Project, *names: str) -> list[str]:
    return [hashlib.sha256((project.path / name).read_bytes()).hexdigest() for name in names]


def save_every_epoch(project: Project) -> None:
    file = project.path / "src/lenet5/training/checkpoint.py"
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
    project.wait_for_store()
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


def test_a_training_that_goes_on_is_recorded_with_the_threads_it_has(pristine: Project, tmp_path: Path) -> None:
    project = pristine.copy(tmp_path / "project")
    project.shrink({"train.epochs": 3, "train.engine": "eager"})
    save_every_epoch(project)
    project.env["OMP_NUM_THREADS"] = "1"
    while not killed(project, "train", 0, "epoch 2/"):
        pass
    project.env["OMP_NUM_THREADS"] = "2"
    told = project.stage("train").stdout
    assert "going on after epoch" in told
    assert "engine eager, 1 threads" in told
    assert project.runs()[-1].data.tags["threads"] == "1"


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
@pytest.mark.alone
def test_ctrl_c_ends_within_two_seconds_and_says_how_to_go_on(pristine: Project, tmp_path: Path) -> None:
    project = pristine.copy(tmp_path / "project")
    project.edit({"train.epochs": 500})

    def pressed() -> float:
        with project.started("dvc", "repro", "train") as process:
            assert process.stdout
            while "epoch " not in process.stdout.readline():
                pass
            took, told = ctrl_c(process)
        assert process.returncode != 0
        assert "dvc repro" in told
        assert TRACEBACK not in told
        return took

    assert least_disturbed(pressed) < 2
    assert digests(project, "models/lenet5.pth") == digests(pristine, "models/lenet5.pth")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
@pytest.mark.parametrize("when", ["importing", "training"])
def test_a_signal_gets_one_line_the_outs_come_back_and_the_run_is_closed(
    pipeline_copy: Project, number: int, status: int, when: str
) -> None:
    project = pipeline_copy
    names = ("models/lenet5.pth", "plots/history.csv", "metrics/training.json")
    before, project.env["DVC_STAGE"] = digests(project, *names), "train"
    project.shrink({"train.epochs": 1000})
    for name in names:  # as DVC does before it runs the stage
        (project.path / name).unlink()
    with project.started("python", "stages/train.py") as process:
        assert process.stdout
        if when == "importing":
            maps = Path(f"/proc/{process.pid}/maps")
            wait_until(lambda: "libtorch" in maps.read_text())
        else:
            wait_until(lambda: len(project.runs()) == 2)
        os.killpg(process.pid, number)
        said = process.stdout.read()
        assert process.wait() == status, said
    assert said.count("train: ") == 1
    assert TRACEBACK not in said
    assert digests(project, *names) == before
    assert [run.info.status for run in project.runs()][1:] == (["KILLED"] if when == "training" else [])


def test_a_closed_terminal_leaves_the_outs_and_a_closed_run(pipeline_copy: Project) -> None:
    project = pipeline_copy
    before, project.env["DVC_STAGE"] = digests(project, "models/lenet5.pth"), "../dvc.yaml:train"  # from a subfolder
    project.shrink({"train.epochs": 1000})
    (project.path / "models/lenet5.pth").unlink()
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "python", "stages/train.py"], cwd=project.path, env=project.env,
        stdin=inside, stdout=inside, stderr=inside,
    )  # fmt: skip
    os.close(inside)
    said = b""
    while len(project.runs()) < 2:  # somebody has to read, or it would wait to be read
        said += os.read(terminal, 2**16) if select.select([terminal], [], [], 0.1)[0] else b""
        assert process.poll() is None, said
    os.close(terminal)
    assert process.wait() == 128 + signal.SIGHUP
    assert digests(project, "models/lenet5.pth") == before
    assert project.runs()[1].info.status == "KILLED"


def test_ctrl_c_in_the_first_training_of_a_clone_is_one_line(pipeline_copy: Project, tmp_path: Path) -> None:
    clone = pipeline_copy.clone(tmp_path / "clone")  # its lock names outs that no cache here holds
    clone.edit({"train.epochs": 1000})
    with clone.started("dvc", "repro", "train") as process:
        assert process.stdout
        lines = []
        while "epoch 1/" not in (lines[-1] if lines else ""):
            lines.append(process.stdout.readline())
            assert process.poll() is None, lines
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
    assert "train: interrupted" in rest
    assert TRACEBACK not in rest


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
