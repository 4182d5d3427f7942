"""What surrounds training: DVC's start, its no-op, export, evaluation, checkpoints and the record."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from lenet5.data.datasets import Splits, load_splits
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.params import DataParams, Params
from lenet5.record.addresses import sqlite_uri
from lenet5.record.lineage import Code
from lenet5.record.result import epoch_points
from lenet5.record.streaming import Stream
from lenet5.results.history import EpochRow
from lenet5.training.checkpoint import EVERY_SECONDS, Checkpoint
from lenet5.training.engine import Engine, EngineChoice, choose_engine
from lenet5.training.loop import Training, laid_out, make_model
from lenet5.training.recipe import draw_plan

REPOSITORY = Path(__file__).parents[1]
EPOCHS = 1000
DIVISION = DataParams(validation_size=5000, train_sample=10_000, split_seed=0)
NO_CODE = Code("", "", "", "")
TINY = {"epochs": 1, "engine": "eager", "device": "cpu"}


def measure_pipeline(folder: Path, repetitions: int) -> dict[str, float]:
    """Seconds, by what was measured, in a copy of the project with an epoch of training."""
    project, empty = folder / "project", folder / "empty"
    _copy_project(project)
    empty.mkdir()
    _run(empty, "dvc", "init", "--quiet", "--no-scm")
    (empty / "dvc.yaml").write_text("stages: {}\n")
    _run(project, "dvc", "repro", "--quiet", "download", "kernel_check")
    first_step = _seconds_to_first_step(project)
    _run(project, "dvc", "repro", "--quiet", "--ignore-errors")
    times = {
        "dvc repro, nothing to do": _median(project, repetitions, "dvc", "repro", "--quiet"),
        "dvc repro in an empty project": _median(empty, repetitions, "dvc", "repro", "--quiet"),
        "stage evaluate": _median(project, repetitions, sys.executable, "stages/evaluate.py"),
        "stage export": _median(project, repetitions, sys.executable, "stages/export.py"),
    }
    return {"dvc repro train, to the first step": first_step, **times}


def checkpoint_share(params: Params, splits: Splits, folder: Path) -> float:
    """The share of training that checkpoints take when there are 1,000 epochs of history."""
    model = make_model(params.model, 0, splits.train.labels.device)
    training = Training(model, splits, params.train, EngineChoice("eager", False, ""))
    training.rows = _rows()
    checkpoint = Checkpoint(folder / "checkpoints", "bench")
    start = time.perf_counter()
    for _ in range(10):
        checkpoint.save(training.state_dict())
    return (time.perf_counter() - start) / 10 / EVERY_SECONDS


def readiness(params: Params, splits: Splits, folder: Path) -> dict[str, float]:
    """Seconds from the data to the end of the first step, where nothing is built yet and where it is."""
    device = splits.train.labels.device
    plan = draw_plan(params.train.batch_size, params.train.augmentation, torch.Generator())

    def once(workspace: Path) -> float:
        os.environ["DVC_ROOT"] = str(workspace)
        start = time.perf_counter()
        choice = choose_engine(params.model, params.train, len(splits.train), device)
        model = laid_out(make_model(params.model, 0, device), choice)
        Engine(choice, model, splits, params.train).train_epoch(plan, [params.train.lr])
        return time.perf_counter() - start

    new = [folder / f"new {n}" for n in range(5)]
    return {
        "from the data to the first step, the first time": statistics.median(map(once, new)),
        "from the data to the first step, later": statistics.median(map(once, new)),
    }


def measuring_share(params: Params, splits: Splits) -> float:
    """The share of an epoch's time that measuring the weights on 25,000 images takes: as params.yaml divides them."""
    divided = load_splits(RAW_DIR, DIVISION, splits.train.labels.device)
    choice = choose_engine(params.model, params.train, len(splits.train), splits.train.labels.device)
    model = laid_out(make_model(params.model, 0, splits.train.labels.device), choice)
    engine = Engine(choice, model, divided, params.train)
    rates = [params.train.lr] * -(-len(divided.train) // params.train.batch_size)
    training, measuring = [], []
    for _ in range(6):
        plan = draw_plan(len(divided.train), params.train.augmentation, torch.Generator())
        start = time.perf_counter()
        engine.train_epoch(plan, rates)
        middle = time.perf_counter()
        engine.measure()
        training.append(middle - start)
        measuring.append(time.perf_counter() - middle)
    return statistics.median(measuring[1:]) / (statistics.median(training[1:]) + statistics.median(measuring[1:]))


def record_seconds(params: Params, folder: Path, epoch_seconds: float) -> float:
    """Seconds that MLflow takes for the curves of 1,000 epochs, in the calls that training makes: at most one a second.

    They are a thread's of its own, beside training.
    """
    os.environ["MLFLOW_TRACKING_URI"] = sqlite_uri(folder / "bench.db")
    os.environ["DVC_ROOT"] = str(folder)
    from lenet5.record.live_run import TrainingRun
    from lenet5.record.store import connect

    run = TrainingRun(connect(params), "bench", params, NO_CODE, {})
    rows, epochs_a_call = _rows(), max(1, round(1 / epoch_seconds))
    start = time.perf_counter()
    for first in range(0, EPOCHS, epochs_a_call):
        run.log_points([point for row in rows[first : first + epochs_a_call] for point in epoch_points(row, 1.0)])
    return time.perf_counter() - start


def away_share(params: Params, seconds: int, port: int) -> float:
    """The share of one core's time that a training gives to a tracking server at ``port`` that does not answer."""
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    from lenet5.record.live_run import TrainingRun
    from lenet5.record.store import connect

    start = time.process_time()
    with Stream(lambda: TrainingRun(connect(params), "bench", params, NO_CODE, {})) as stream:
        for row in _rows()[:seconds]:
            stream.send(epoch_points(row, 1.0))
            time.sleep(1)
        share = (time.process_time() - start) / seconds
        stream.finish("")
    return share


def _rows() -> list[EpochRow]:
    return [EpochRow(epoch, *[0.5] * 11) for epoch in range(1, EPOCHS + 1)]


def _copy_project(project: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name != "dvc.lock" and not name.startswith("metrics/") and (REPOSITORY / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, project / name)
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["train"] |= TINY
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    _run(project, "git", "init", "--quiet")


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "PYTHONUNBUFFERED": "1",
        "FASHION_MNIST_DIR": os.environ.get("FASHION_MNIST_DIR", str(REPOSITORY / RAW_DIR)),
        "MLFLOW_TRACKING_URI": sqlite_uri(folder / "mlflow.db"),
    }


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {folder}:\n{done.stdout}\n{done.stderr}")


def _median(folder: Path, repetitions: int, *command: str) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        _run(folder, *command)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _seconds_to_first_step(project: Path) -> float:
    """The stage names its engine just before the first step."""
    start = time.perf_counter()
    with subprocess.Popen(
        ["dvc", "repro", "--single-item", "train"], cwd=project, env=_environment(project), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        if process.stdout is None:
            raise RuntimeError("no output to read")
        for line in process.stdout:
            if line.startswith("engine "):
                seconds = time.perf_counter() - start
                process.communicate()
                return seconds
    raise RuntimeError("dvc repro train named no engine")
