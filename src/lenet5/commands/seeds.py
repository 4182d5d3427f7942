"""Tell an improvement from luck: ``python -m lenet5.seeds --count 8`` trains the current params from several seeds.

On a CPU one process a core, with one thread each; on a GPU all at once, their weights stacked, each with its own
shuffling. The workspace's outs stay as they are.
"""

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch
from rich.console import Console
from rich.table import Table

from lenet5 import evaluation
from lenet5.datasets import Splits, load_splits
from lenet5.engine import EngineChoice, choose_engine, pick_device, set_deterministic, set_precision
from lenet5.errors import UserError, one_line_errors
from lenet5.fashion_mnist import RAW_DIR
from lenet5.history import EpochRow
from lenet5.lineage import lineage_tags, read_code
from lenet5.model import LeNet5
from lenet5.params import Params, load_params
from lenet5.record import evaluation_figures
from lenet5.replicas import train_replicas
from lenet5.training import Progress, Training, make_model
from lenet5.workspace import PARAMS_FILE

CONFIDENCE = 0.95
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Replica:
    """What one seed gave: its history and the figures of its chosen weights, named as in the record."""

    seed: int
    rows: list[EpochRow]
    figures: dict[str, float]


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation, and Student's interval around the mean, of one figure over the seeds."""

    mean: float
    deviation: float
    low: float
    high: float


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main() -> None:
    """Read the command line, train, record, and show."""
    with one_line_errors("seeds", "call it again"):
        parser = _Parser(prog="python -m lenet5.seeds", description="Train the current params from several seeds.")
        parser.add_argument("--count", type=int, required=True, help="how many: train.seed, train.seed + 1, ...")
        count = parser.parse_args().count
        params = load_params(PARAMS_FILE)
        seeds = seeds_from(params.train.seed, count)
        replicas = []
        for replica in train_all(params, seeds):
            accuracy = replica.figures["final/test_accuracy"]
            print(f"seed {replica.seed}: {len(replica.rows)} epochs, test accuracy {accuracy:.4f}", flush=True)
            replicas.append(replica)
        spreads = {name: spread([one.figures[name] for one in replicas]) for name in replicas[0].figures}
        Console().print(spread_table(spreads, count))
        _record(params, replicas, spreads)


def seeds_from(first: int, count: int) -> list[int]:
    """``count`` seeds, one after the other. Raises UserError where there are none, or no spread."""
    if count < 2:
        raise UserError(f"--count {count}: a spread needs at least 2 seeds")
    if first + count - 1 > _LARGEST_SEED:
        raise UserError(f"--count {count}: from train.seed {first} that goes beyond {_LARGEST_SEED}; lower train.seed")
    return list(range(first, first + count))


def train_all(params: Params, seeds: Sequence[int]) -> Iterator[Replica]:
    """A replica for each of ``seeds``, in their order. Raises UserError as training does."""
    device = pick_device(params.train.device)
    load_splits(RAW_DIR, params.data, torch.device("cpu"))  # what is wrong with the data is said once
    if device.type == "cuda":
        yield from train_together(params, seeds, device)
        return
    processes = min(len(seeds), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # a forked process would share PyTorch's threads, which do not fork
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(partial(train_one, params), seeds)


def train_one(params: Params, seed: int) -> Replica:
    """Train from ``seed`` as the stage ``train`` does, and measure the chosen weights."""
    torch.compiler.reset()  # a process compiles for eight models, and then no more
    recipe = params.train.model_copy(update={"seed": seed})
    device = pick_device(recipe.device)
    splits, engine = _prepare(params, device)
    training = Training(make_model(params.model, seed, device), splits, recipe, engine)
    for _ in training.epochs():
        pass
    return _measured(params, seed, training, splits)


def train_together(params: Params, seeds: Sequence[int], device: torch.device) -> Iterator[Replica]:
    """Train all of ``seeds`` at once, their weights stacked."""
    splits, engine = _prepare(params, device)
    trained = train_replicas(params.model, splits, params.train, seeds, engine)
    for seed, progress in zip(seeds, trained, strict=True):
        yield _measured(params, seed, progress, splits)


def _prepare(params: Params, device: torch.device) -> tuple[Splits, EngineChoice]:
    set_deterministic(params.train.deterministic)
    set_precision(params.train.precision, device)
    splits = load_splits(RAW_DIR, params.data, device)
    return splits, choose_engine(params.train, len(splits.train), device)


def _measured(params: Params, seed: int, progress: Progress, splits: Splits) -> Replica:
    model = LeNet5(params.model)
    model.load_state_dict(progress.weights)
    on_device = model.to(splits.train.labels.device).to(memory_format=torch.channels_last)
    return Replica(seed, progress.rows, figures(on_device, splits))


def figures(model: LeNet5, splits: Splits) -> dict[str, float]:
    """Loss and accuracy of ``model`` on every split, and the gaps, as the record names them."""
    measures = {name: evaluation.measure(model, split) for name, split in splits.measured().items()}
    measured = {name: {"loss": one.loss, "accuracy": one.accuracy} for name, one in measures.items()}
    gaps = {
        "gap": evaluation.gap_figures(measured["train"], measured.get("validation", measured["test"])),
        "gap_test": evaluation.gap_figures(measured["train"], measured["test"]),
    }
    return evaluation_figures(measured | gaps)


def spread(values: Sequence[float]) -> Spread:
    """Of two or more values of one figure."""
    from scipy.stats import t

    numbers = torch.tensor(values, dtype=torch.float64)
    mean, deviation = numbers.mean().item(), numbers.std().item()
    margin = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
    return Spread(mean, deviation, mean - margin, mean + margin)


def spread_table(spreads: dict[str, Spread], count: int) -> Table:
    """One row a figure."""
    table = Table("figure", "mean", "standard deviation", f"{CONFIDENCE:.0%} interval", title=f"{count} seeds")
    for name, one in spreads.items():
        table.add_row(
            name.removeprefix("final/"), f"{one.mean:.4f}", f"{one.deviation:.4f}", f"{one.low:.4f} to {one.high:.4f}"
        )
    return table


def _record(params: Params, replicas: Sequence[Replica], spreads: dict[str, Spread]) -> None:
    from lenet5 import tracking

    code = read_code()
    tags = lineage_tags(code) | {"mlflow.source.name": "python -m lenet5.seeds"}
    children = [(one.seed, one.rows, one.figures) for one in replicas]
    summary = {
        f"{kind}/{name.removeprefix('final/')}": value
        for name, one in spreads.items()
        for kind, value in vars(one).items()
    }
    print(f"MLflow run {tracking.record_seeds(tracking.connect(params), params, children, summary, tags, code)}")


if __name__ == "__main__":
    main()
