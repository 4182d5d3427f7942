"""Stage train: LeNet-5 by the recipe in params.yaml. About 2 minutes for 100 epochs on two CPU cores."""

import io
from functools import partial

import torch
from rich.console import Console

from lenet5.attempt import begin
from lenet5.checkpoint import Checkpoint, result_key
from lenet5.datasets import load_splits
from lenet5.display import EpochDisplay, architecture_table
from lenet5.engine import choose_engine, pick_device, set_deterministic, set_precision
from lenet5.fashion_mnist import RAW_DIR
from lenet5.files import digest, remove_old, write_bytes, write_json
from lenet5.history import HistoryFile
from lenet5.lineage import Code, lineage_tags, read_code
from lenet5.model import layers
from lenet5.outs import HISTORY, TRAINING, WEIGHTS
from lenet5.params import Params
from lenet5.record import digest_training, epoch_points
from lenet5.stage import outs_survive_failure, run_stage
from lenet5.streaming import Run, Stream
from lenet5.training import Training, make_model
from lenet5.workspace import ATTEMPTS, CHECKPOINTS, PIPELINE_FILE, main_workspace


def main(params: Params) -> None:
    """Train, or go on from the last checkpoint, streaming to MLflow; write weights, history and how it went."""
    console = Console()
    device = pick_device(params.train.device)
    set_deterministic(params.train.deterministic)
    set_precision(params.train.precision, device)
    splits = load_splits(RAW_DIR, params.data, device)
    engine = choose_engine(params.train, len(splits.train), device)
    model = make_model(params.model, params.train.seed, device)
    console.print(architecture_table(layers(model)))
    console.print(f"{len(splits.train):,} training images on {device}")
    console.print(f"engine {engine.title}: {engine.reason}")
    training = Training(model, splits, params.train, engine)
    code = read_code()  # now: a tracking server may come to life when somebody has changed the code already
    tags = lineage_tags(code) | {"device": device.type}
    key = result_key(params, PIPELINE_FILE, device, engine)
    checkpoints, attempts = main_workspace() / CHECKPOINTS, main_workspace() / ATTEMPTS
    checkpoint = Checkpoint(checkpoints, key)
    if state := checkpoint.load():
        training.load_state_dict(state)
        console.print(f"going on after epoch {len(training.rows)}, from the checkpoint of an unfinished training")
    with (
        begin(attempts, key) as attempt,
        Stream(partial(open_run, params, attempt.name, code, tags)) as stream,
        HistoryFile(HISTORY, training.rows) as history,
        EpochDisplay(console, params.train.epochs, len(splits.train)) as display,
    ):
        for row in training.rows:  # of an earlier process, which may have ended before it sent them
            stream.send(epoch_points(row, None))
        for row in training.epochs():
            history.append(row)
            stream.send(epoch_points(row, display.show(row)))
            checkpoint.save_if_due(training.state_dict)
        write(training)
        training_digest = digest_training(params)
        attempt.finished(training_digest)
        stream.finish(training_digest)
        checkpoint.remove()
    for folder in (checkpoints, attempts):  # last: this training may have been one of those that nobody took up
        remove_old(folder)


def write(training: Training) -> None:
    """Write the outs, the weights through memory: torch.save puts the name of its file into the file."""
    buffer = io.BytesIO()
    torch.save(training.weights, buffer)
    weights = buffer.getvalue()
    write_bytes(WEIGHTS, weights)
    epochs = {"epochs": len(training.rows), "chosen_epoch": training.chosen_epoch}
    write_json(TRAINING, {**epochs, "weights_sha256": digest(weights)})


def open_run(params: Params, attempt: str, code: Code, tags: dict[str, str]) -> Run:
    """Open the MLflow run of this training, or find it again. The stream's thread calls it: mlflow imports slowly."""
    from lenet5 import tracking

    return tracking.TrainingRun(tracking.connect(params), attempt, params, code, tags)


if __name__ == "__main__":
    with outs_survive_failure("train"):
        run_stage("train", main)
