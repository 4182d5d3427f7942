"""Side by side, in one run: the tutorial's loop, Lightning's, and this project's engines. ``make bench`` runs it.

Prints tables, and leaves them with hardware and versions in ``bench/results/``. 10 to 25 minutes on two CPU cores.
"""

import lenet5  # isort: skip  # noqa: F401 - sets how threads wait, which is read when PyTorch is loaded

import argparse
import socket
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import torch
from torch.utils.flop_counter import FlopCounterMode

from lenet5.data.datasets import Splits, load_splits, to_float
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.errors import one_line_errors
from lenet5.files import write_bytes, write_json
from lenet5.network.lenet5 import LeNet5
from lenet5.params import TRAINING_IMAGES, Params, load_params
from lenet5.processors import use_own_share
from lenet5.training.device import pick_device, set_deterministic, set_precision
from lenet5.training.engine import choose_engine
from lenet5.training.loop import Training, make_model
from lenet5.training.replicas import replica_epochs
from others import NAMES, TUTORIAL
from ours import engine_epochs
from pipeline import EPOCHS, away_share, checkpoint_share, measure_pipeline, measuring_share, readiness, record_seconds
from report import RESULTS, machine, page, print_tables
from turns import alternate, busy_processes, timed, worker
from tutorial import BATCH, LEARNING_RATE

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "dvc", "mlflow")
OTHERS = Path(__file__).parent / "others.py"
REPLICAS = 32
NOBODY = 9  # the port of the discard service, which is off everywhere


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training side by side.")
    parser.add_argument("--quick", action="store_true", help="one repetition: to see it work, not to quote")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    repetitions, patience = (1, 2) if arguments.quick else (5, 30)
    with one_line_errors("bench"), tempfile.TemporaryDirectory() as folder:
        params = the_recipe(load_params(Path("params.yaml")))
        use_own_share()
        device = pick_device(arguments.device)
        set_deterministic(True)
        set_precision("fp32", device)
        splits = load_splits(RAW_DIR, params.data, device)
        figures = measure_training(params, splits, device, repetitions)
        fastest = min(row["seconds"] for row in figures["loops"].values())
        recorded = record_seconds(params, Path(folder), fastest)
        figures["seconds"] = measure_pipeline(Path(folder), repetitions) | {
            f"MLflow, the curves of {EPOCHS:,} epochs": recorded,
            **readiness(params, splits, Path(folder)),
        }
        figures["shares"] = {
            "measuring after each epoch": measuring_share(params, splits),
            f"checkpoints, at {EPOCHS:,} epochs": checkpoint_share(params, splits, Path(folder)),
            f"MLflow, over {EPOCHS:,} epochs": recorded / (EPOCHS * fastest),
            "MLflow's server away, of one core": away_share(params, patience, NOBODY),
        }
        with socket.create_server(("127.0.0.1", 0)) as silent:  # takes every call, and never answers
            share = away_share(params, patience, silent.getsockname()[1])
        figures["shares"]["MLflow's server silent, of one core"] = share
    show(figures, "quick" if arguments.quick else device.type)


def the_recipe(params: Params) -> Params:
    """The tutorial's recipe on all images, whatever params.yaml says."""
    recipe = {
        "batch_size": BATCH, "lr": LEARNING_RATE, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0,
        "schedule": "constant", "label_smoothing": 0.0, "loss_q": 0.0,
        "augmentation": {"horizontal_flip": False, "shift": 0, "erasing": 0.0, "cutmix": 0.0},
        "precision": "fp32", "epochs": EPOCHS, "engine": "auto", "patience": 0,
    }  # fmt: skip
    content = params.model_dump(by_alias=True)
    content["train"] |= recipe
    content["model"] = {"activation": "sigmoid", "pooling": "avg", "c3": "full", "dropout": 0.0}
    content["data"]["validation_size"] = 0
    return Params.model_validate(content)


def measure_training(params: Params, splits: Splits, device: torch.device, repetitions: int) -> dict[str, Any]:
    gflop, rate = epoch_gflop(params, device), matmul_gflops(device)
    epochs = engine_epochs(params, splits)
    with worker(OTHERS, str(RAW_DIR.parents[1]), device.type, waiting={}) as others:
        turns = {name: partial(others, name) for name in NAMES}
        turns |= {name: partial(timed, epoch, device) for name, epoch in epochs.items()}
        times = alternate(turns, repetitions)
        with busy_processes(joblib.cpu_count() or 1):
            shared = alternate(turns, min(repetitions, 2))
    tutorial = statistics.median(times[TUTORIAL])
    figures: dict[str, Any] = {
        "machine": machine(device, PACKAGES),
        "gflop_per_epoch": gflop,
        "matmul_gflops": rate,
        "loops": {
            name: {
                "seconds": (median := statistics.median(measured)),
                "fastest": min(measured),
                "slowest": max(measured),
                "ratio": tutorial / median,
                "images_per_second": TRAINING_IMAGES / median,
                "share_of_floor": gflop / rate / median,
                "share_when_shared": median / statistics.median(shared[name]),
            }
            for name, measured in times.items()
        },
    }
    if device.type == "cuda":
        figures["seconds_of_1000_epochs"] = training_seconds(params, splits, device)
        figures["ms_a_replica_epoch"] = 1000 * replica_seconds(params, splits, device)
    return figures


def epoch_gflop(params: Params, device: torch.device) -> float:
    """Multiplications and additions of an epoch, forward and backward, counted on a batch."""
    model = make_model(params.model, 0, device)
    counter = FlopCounterMode(display=False)
    with counter:
        model(to_float(torch.zeros(BATCH, 28, 28, dtype=torch.uint8, device=device))).sum().backward()
    return float(counter.get_total_flops() / BATCH * TRAINING_IMAGES / 1e9)


def matmul_gflops(device: torch.device, size: int = 2048) -> float:
    """What the machine reaches on a large float32 product."""
    matrix = torch.rand(size, size, device=device)
    return 2 * size**3 / min(timed(lambda: matrix @ matrix, device) for _ in range(30)) / 1e9


def training_seconds(params: Params, splits: Splits, device: torch.device) -> float:
    """1,000 epochs with a measurement of the weights after each, capture and compilation included."""
    model: LeNet5 = make_model(params.model, 0, device)
    training = Training(
        model, splits, params.train, choose_engine(params.model, params.train, len(splits.train), device)
    )
    return timed(lambda: list(training.epochs()), device)


def replica_seconds(params: Params, splits: Splits, device: torch.device, measured: int = 50) -> float:
    """Seconds an epoch takes one of 32 replicas trained together, measuring included, capture and compilation not."""
    choice = choose_engine(params.model, params.train, len(splits.train), device)
    recipe = params.train.model_copy(update={"epochs": 1 + measured})
    epochs = replica_epochs(params.model, splits, recipe, range(REPLICAS), choice)
    next(epochs)  # it compiles and records, where anything does
    return timed(lambda: list(epochs), device) / measured / REPLICAS


def show(figures: dict[str, Any], kind: str) -> None:
    """Print the tables; keep them as JSON and Markdown."""
    training = [
        (
            "loop",
            "s an epoch",
            "fastest to slowest",
            "times the tutorial's",
            "images/s",
            "share of the floor",
            "speed beside a busy process a core",
        )
    ]
    training += [
        (
            name, f"{row['seconds']:.3f}", f"{row['fastest']:.3f} to {row['slowest']:.3f}", f"{row['ratio']:.2f}",
            f"{row['images_per_second']:,.0f}", f"{row['share_of_floor']:.0%}",
            f"{row['share_when_shared']:.0%} of quiet",
        )
        for name, row in figures["loops"].items()
    ]  # fmt: skip
    around = [("what", "takes")]
    around += [(name, f"{seconds:.2f} s") for name, seconds in figures["seconds"].items()]
    around += [(name, f"{share:.2%} of training") for name, share in figures["shares"].items()]
    if "seconds_of_1000_epochs" in figures:
        around.append(("1,000 epochs, measured after each", f"{figures['seconds_of_1000_epochs']:.2f} s"))
        around.append((f"an epoch of one of {REPLICAS} replicas", f"{figures['ms_a_replica_epoch']:.2f} ms"))
    tables = [training, around]
    print_tables(tables)
    rate = f"{figures['matmul_gflops']:,.0f} GFLOP/s"
    floor = f"{figures['gflop_per_epoch']:.0f} GFLOP an epoch; the floor: the {rate} measured of a product of matrices"
    print(floor)
    facts = figures["machine"] | {"arithmetic": floor}
    write_bytes(RESULTS / f"{kind}.md", page(kind, facts, tables).encode())
    write_json(RESULTS / f"{kind}.json", figures)
    print(f"written to {RESULTS / kind}.md and .json")


if __name__ == "__main__":
    main()
