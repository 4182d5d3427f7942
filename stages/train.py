"""Stage train: LeNet-5 by the recipe in params.yaml. About 10 minutes for 100 epochs on two CPU cores."""

import io
import uuid
from functools import partial

import torch
from rich.console import Console

from lenet5.datasets import load_splits
from lenet5.display import EpochDisplay, architecture_table
from lenet5.engine import pick_device, set_deterministic
from lenet5.fashion_mnist import RAW_DIR
from lenet5.files import write_bytes, write_json
from lenet5.history import EpochRow, HistoryFile
from lenet5.lineage import lineage_tags, read_code
from lenet5.model import layers, parameter_count
from lenet5.outs import HISTORY, TRAINING, WEIGHTS
from lenet5.params import Params
from lenet5.record import digest_training, epoch_points
from lenet5.stage import outs_survive_failure, run_stage
from lenet5.streaming import Run, Stream
from lenet5.training import Trained, fit, make_model


def main(params: Params) -> None:
    """Train, streaming to MLflow, and write the chosen weights, the history and how training went."""
    console = Console()
    device = pick_device(params.train.device)
    set_deterministic(params.train.deterministic)
    splits = load_splits(RAW_DIR, params.data, device)
    model = make_model(params.model, params.train.seed, device)
    console.print(architecture_table(layers(model)))
    console.print(f"{len(splits.train):,} training images on {device}")
    with (
        Stream(partial(open_run, params, device.type, uuid.uuid4().hex)) as stream,
        HistoryFile(HISTORY) as history,
        EpochDisplay(console, params.train.epochs, len(splits.train)) as display,
    ):

        def on_epoch(row: EpochRow) -> None:
            history.append(row)
            stream.send(epoch_points(row, display.show(row)))

        trained = fit(model, splits, params.train, on_epoch)
        write(trained, parameter_count(model))
        stream.finish(digest_training(params))


def write(trained: Trained, parameters: int) -> None:
    """Write the outs, the weights through memory: torch.save puts the name of its file into the file."""
    weights = io.BytesIO()
    torch.save(trained.weights, weights)
    write_bytes(WEIGHTS, weights.getvalue())
    report = {"epochs": trained.epochs, "chosen_epoch": trained.chosen_epoch, "parameters": parameters}
    write_json(TRAINING, report)


def open_run(params: Params, device: str, attempt: str) -> Run:
    """Open the MLflow run of this training, or find it again. The stream's thread calls it: mlflow imports slowly."""
    from lenet5 import tracking

    code = read_code()
    return tracking.TrainingRun(
        tracking.connect(params), attempt, params, code, lineage_tags(code) | {"device": device}
    )


if __name__ == "__main__":
    with outs_survive_failure("train"):
        run_stage("train", main)
