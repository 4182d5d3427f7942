"""Stage train: LeNet-5 by the recipe in params.yaml. About 10 minutes for 100 epochs on two CPU cores."""

import io
from pathlib import Path

import torch
from rich.console import Console

from lenet5.datasets import load_splits
from lenet5.display import EpochDisplay, architecture_table
from lenet5.engine import pick_device, set_deterministic
from lenet5.fashion_mnist import RAW_DIR
from lenet5.files import write_bytes, write_json
from lenet5.history import EpochRow, HistoryFile
from lenet5.model import layers, parameter_count
from lenet5.params import Params
from lenet5.stage import outs_survive_failure, run_stage
from lenet5.training import fit, make_model

WEIGHTS, HISTORY, METRICS = (
    Path("models/lenet5.pth"),
    Path("plots/history.csv"),
    Path("metrics/training.json"),
)


def main(params: Params) -> None:
    """Train, and write the chosen weights, the history and how training went."""
    console = Console()
    device = pick_device(params.train.device)
    set_deterministic(params.train.deterministic)
    splits = load_splits(RAW_DIR, params.data, device)
    model = make_model(params.model, params.train.seed, device)
    console.print(architecture_table(layers(model)))
    console.print(f"{len(splits.train):,} training images on {device}")
    with (
        HistoryFile(HISTORY) as history,
        EpochDisplay(console, params.train.epochs, len(splits.train)) as display,
    ):

        def on_epoch(row: EpochRow) -> None:
            history.append(row)
            display.show(row)

        trained = fit(model, splits, params.train, on_epoch)
    # Through memory: torch.save writes the name of its file into the file.
    weights = io.BytesIO()
    torch.save(trained.weights, weights)
    write_bytes(WEIGHTS, weights.getvalue())
    figures = {
        "epochs": trained.epochs,
        "chosen_epoch": trained.chosen_epoch,
        "parameters": parameter_count(model),
    }
    write_json(METRICS, figures)


if __name__ == "__main__":
    with outs_survive_failure("train"):
        run_stage("train", main)
