"""What a worker does for `lenet5 seeds`: train from some seeds, and measure the weights of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lenet5.data.datasets import Splits, load_splits
from lenet5.network.lenet5 import LeNet5
from lenet5.params import Params
from lenet5.results import evaluation
from lenet5.search.engine import HopelessError, Job, Row
from lenet5.search.work import with_engine
from lenet5.training.card_errors import card_errors
from lenet5.training.engine import EngineChoice
from lenet5.training.loop import DivergedError, Progress, Training, make_model, prepare
from lenet5.training.replicas import replica_epochs

TOGETHER = 32
"""Seeds that a card trains at once, at most: so many are lost with its process, and have to fit into its memory."""


def seed_jobs(params: Params, seeds: Sequence[int], together: int) -> list[Job]:
    """A job for every ``together`` seeds, as ``train_seeds`` takes it."""
    content = params.model_dump(mode="json", by_alias=True)
    parts = [seeds[start : start + together] for start in range(0, len(seeds), together)]
    return [Job(_named(part), {"params": content, "seeds": list(part)}) for part in parts]


def train_seeds(raw_dir: Path, engine_taken: str | None, asked: Mapping[str, Any]) -> Iterator[Row]:
    """Train as the stage ``train`` does, from each of the ``seeds`` of ``asked``; on a card all of them at once.

    With the engine that the driver has taken, if it has.

    Rows are {seed, epoch: the row of its history} as each epoch ends, and at last {seed, figures}, named as in the
    record, of the chosen weights. Raises HopelessError where a loss diverges, UserError as training does.
    """
    params = with_engine(Params.model_validate(asked["params"]), engine_taken)
    splits, engine = prepare(raw_dir, params, load_splits)
    try:
        with card_errors():
            if splits.train.labels.device.type == "cuda":
                yield from _stacked(params, asked["seeds"], splits, engine)
            else:
                for seed in asked["seeds"]:
                    yield from _alone(params, seed, splits, engine)
    except DivergedError as error:
        raise HopelessError(str(error)) from None


def _alone(params: Params, seed: int, splits: Splits, engine: EngineChoice) -> Iterator[Row]:
    recipe = params.train.model_copy(update={"seed": seed})
    training = Training(make_model(params.model, seed, splits.train.labels.device), splits, recipe, engine)
    for row in training.epochs():
        yield {"seed": seed, "epoch": asdict(row)}
    yield _measured(params, seed, training, splits)


def _stacked(params: Params, seeds: Sequence[int], splits: Splits, engine: EngineChoice) -> Iterator[Row]:
    progress: list[Progress] = []
    for number, progress in enumerate(replica_epochs(params.model, splits, params.train, seeds, engine), 1):
        for seed, one in zip(seeds, progress, strict=True):
            if len(one.rows) == number:  # of those that are out of patience there is nothing new
                yield {"seed": seed, "epoch": asdict(one.rows[-1])}
    for seed, one in zip(seeds, progress, strict=True):
        yield _measured(params, seed, one, splits)


def _measured(params: Params, seed: int, progress: Progress, splits: Splits) -> Row:
    model = LeNet5(params.model)
    model.load_state_dict(progress.weights)
    on_device = model.to(splits.train.labels.device).to(memory_format=torch.channels_last)
    return {"seed": seed, "chosen_epoch": progress.chosen_epoch, "figures": measure(on_device, splits)}


def measure(model: LeNet5, splits: Splits) -> dict[str, Any]:
    """Loss and accuracy of ``model`` on every split, and the gaps, as ``evaluation.json`` has them."""
    measures = {name: evaluation.measure(model, split) for name, split in splits.measured().items()}
    return evaluation.with_gaps({name: {"loss": one.loss, "accuracy": one.accuracy} for name, one in measures.items()})


def _named(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
