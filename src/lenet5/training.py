"""Training: epoch after epoch through the engine, measuring frozen weights, choosing, and stopping."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lenet5.datasets import Splits
from lenet5.engine import EpochResult, draw_plan, learning_rates, make_optimizer, train_epoch
from lenet5.errors import UserError
from lenet5.evaluation import measure
from lenet5.history import EpochRow
from lenet5.model import LeNet5
from lenet5.params import ModelParams, TrainParams


@dataclass(frozen=True)
class Trained:
    """The chosen weights, on the CPU, the epoch they come from, and how many epochs were run."""

    weights: dict[str, Tensor]
    chosen_epoch: int
    epochs: int


def make_model(params: ModelParams, seed: int, device: torch.device) -> LeNet5:
    """A freshly initialised model. The seed alone decides its weights, on every device; dropout follows it too."""
    torch.manual_seed(seed)
    return LeNet5(params).to(device).to(memory_format=torch.channels_last)


def fit(model: LeNet5, splits: Splits, params: TrainParams, on_epoch: Callable[[EpochRow], None]) -> Trained:
    """Train ``model``, which must be on the device of ``splits``.

    ``on_epoch`` is called as soon as an epoch has been trained and measured. Raises UserError when the loss stops
    being a finite number.
    """
    optimizer = make_optimizer(model, params)
    generator = torch.Generator().manual_seed(params.seed)
    steps = math.ceil(len(splits.train) / params.batch_size)
    rates = learning_rates(params, steps * params.epochs)
    keep_last = params.weights == "last" or splits.validation is None
    lowest, lowest_epoch = math.inf, 0
    chosen = Trained({}, 0, 0)
    for epoch in range(1, params.epochs + 1):
        epoch_rates = rates[(epoch - 1) * steps : epoch * steps]
        plan = draw_plan(len(splits.train), params.augmentation, generator)
        result = train_epoch(model, optimizer, splits.train, plan, epoch_rates, params)
        _refuse_divergence(result, epoch, epoch_rates)
        row = _measure_epoch(model, splits, result, epoch, epoch_rates[-1])
        improved = row.validation_loss is not None and row.validation_loss < lowest
        if improved:
            lowest, lowest_epoch = row.validation_loss or 0.0, epoch
        if improved or keep_last:
            chosen = Trained(_copy_weights(model), epoch, epoch)
        on_epoch(row)
        if params.patience and epoch - lowest_epoch >= params.patience:
            break
    return Trained(chosen.weights, chosen.chosen_epoch, epoch)


def _measure_epoch(model: LeNet5, splits: Splits, result: EpochResult, epoch: int, rate: float) -> EpochRow:
    measures = {name: measure(model, split) for name, split in splits.measured().items()}
    validation = measures.get("validation")
    gap = measures["train"].gap_to(validation or measures["test"])
    row = EpochRow(
        epoch=epoch,
        learning_rate=rate,
        running_loss=result.mean_loss,
        running_accuracy=result.accuracy,
        train_loss=measures["train"].loss,
        train_accuracy=measures["train"].accuracy,
        validation_loss=validation.loss if validation else None,
        validation_accuracy=validation.accuracy if validation else None,
        test_loss=measures["test"].loss,
        test_accuracy=measures["test"].accuracy,
        gap_loss=gap.loss,
        gap_accuracy=gap.accuracy,
    )
    if not math.isfinite(row.train_loss + row.test_loss):
        raise UserError(_diverged(row.train_loss, f"after epoch {epoch}", rate))
    return row


def _refuse_divergence(result: EpochResult, epoch: int, rates: Sequence[float]) -> None:
    bad = (~result.losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise UserError(_diverged(result.losses[step].item(), f"at epoch {epoch}, step {step + 1}", rates[step]))


def _diverged(loss: float, where: str, rate: float) -> str:
    return f"the loss became {loss} {where}, with learning rate {rate:g}; nothing was kept: try a smaller train.lr"


def _copy_weights(model: LeNet5) -> dict[str, Tensor]:
    # Contiguous, so that the file does not depend on the memory format training used.
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
