"""Training: epoch after epoch through the engine, measuring frozen weights, choosing, and stopping."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenet5.data.datasets import Splits
from lenet5.errors import UserError
from lenet5.network.lenet5 import LeNet5
from lenet5.params import DataParams, ModelParams, Params, TrainParams
from lenet5.results.evaluation import Measure
from lenet5.results.history import EpochRow
from lenet5.training.card_errors import card_errors
from lenet5.training.device import pick_device, set_deterministic, set_precision
from lenet5.training.engine import Engine, EngineChoice, EpochResult, choose_engine
from lenet5.training.recipe import draw_plan, learning_rates


class DivergedError(UserError):
    """A loss that is no finite number any more: the recipe's doing, and the same when it is repeated."""


@card_errors()  # the first to ask a card for memory
def prepare(
    raw_dir: Path, params: Params, load: Callable[[Path, DataParams, torch.device], Splits]
) -> tuple[Splits, EngineChoice]:
    """The data on the device that trains, as ``load`` reads it, and the engine.

    Raises UserError as training does.
    """
    device = pick_device(params.train.device)
    set_deterministic(params.train.deterministic)
    set_precision(params.train.precision, device)
    splits = load(raw_dir, params.data, device)
    return splits, choose_engine(params.model, params.train, len(splits.train), device)


def make_model(params: ModelParams, seed: int, device: torch.device) -> LeNet5:
    """A freshly initialised model. The seed alone decides its weights, on every device; dropout follows it too."""
    torch.manual_seed(seed)
    return LeNet5(params).to(device)


def laid_out(model: LeNet5, choice: EngineChoice) -> LeNet5:
    """``model`` in the memory format in which the engine is fastest; before its optimizer is made."""
    return model if choice.name == "lanes" else model.to(memory_format=torch.channels_last)


class Progress:
    """How far a training has come, and the rules by which weights are chosen and training stops.

    ``weights`` are those chosen so far, on the CPU, and ``chosen_epoch`` the epoch they come from; ``rows`` is the
    history so far.
    """

    def __init__(self, params: TrainParams) -> None:
        self.rows: list[EpochRow] = []
        self.weights: dict[str, Tensor] = {}
        self.chosen_epoch = 0
        self._lowest, self._lowest_epoch = math.inf, 0
        self._params = params

    def out_of_patience(self) -> bool:
        """Whether the validation loss has not fallen for as long as ``train.patience`` allows."""
        return bool(self._params.patience) and len(self.rows) - self._lowest_epoch >= self._params.patience

    def add(self, row: EpochRow, weights: Mapping[str, Tensor]) -> None:
        """Take in an epoch and, where they are the better ones, its weights."""
        improved = row.validation_loss is not None and row.validation_loss < self._lowest
        if row.validation_loss is not None and improved:
            self._lowest, self._lowest_epoch = row.validation_loss, row.epoch
        if improved or self._params.weights == "last" or row.validation_loss is None:
            # Contiguous, so that the file does not depend on the memory format training used.
            self.weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
            self.chosen_epoch = row.epoch
        self.rows.append(row)


class Training(Progress):
    """A training under way, which can be stopped after any epoch and taken up again exactly.

    ``model`` must be on the device of ``splits``.
    """

    def __init__(self, model: LeNet5, splits: Splits, params: TrainParams, choice: EngineChoice) -> None:
        super().__init__(params)
        self._model, self._splits, self._choice = laid_out(model, choice), splits, choice
        self._engine = Engine(choice, model, splits, params)
        self._generator = torch.Generator().manual_seed(params.seed)
        self._steps = math.ceil(len(splits.train) / params.batch_size)

    def epochs(self) -> Iterator[EpochRow]:
        """Train until the last epoch or until patience runs out, yielding each epoch as it has been measured.

        Raises DivergedError when the loss stops being a finite number.
        """
        while len(self.rows) < self._params.epochs and not self.out_of_patience():
            yield self._train_epoch()

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on: tensors and plain values only."""
        return {
            "engine": self._engine.state_dict(),
            "generator": self._generator.get_state(),
            "random": _random_states(self._splits.train.labels.device),
            "rows": [asdict(row) for row in self.rows],
            "weights": self.weights,
            "chosen_epoch": self.chosen_epoch,
            "threads": torch.get_num_threads(),
            "lowest": self._lowest,
            "lowest_epoch": self._lowest_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken, with as many threads where PyTorch's sums depend on them."""
        if self._choice.name != "lanes":
            torch.set_num_threads(state["threads"])
        self._engine.load_state_dict(state["engine"])
        self._generator.set_state(state["generator"])
        _set_random_states(state["random"], self._splits.train.labels.device)
        self.rows = [EpochRow(**row) for row in state["rows"]]
        self.weights, self.chosen_epoch = state["weights"], state["chosen_epoch"]
        self._lowest, self._lowest_epoch = state["lowest"], state["lowest_epoch"]

    def _train_epoch(self) -> EpochRow:
        epoch = len(self.rows) + 1
        rates = learning_rates(self._params, self._steps, epoch)
        plan = draw_plan(len(self._splits.train), self._params.augmentation, self._generator)
        result = self._engine.train_epoch(plan, rates)
        refuse_divergence(result, epoch, rates)
        row = epoch_row(self._engine.measure(), result, epoch, rates[-1])
        self.add(row, self._model.state_dict())
        return row


def epoch_row(measures: Mapping[str, Measure], result: EpochResult, epoch: int, rate: float) -> EpochRow:
    """The history's row for ``measures`` of the splits. Raises DivergedError where a loss is no finite number."""
    validation, test = measures.get("validation"), measures.get("test")
    gap = measures["train"].gap_to(validation or measures["test"])
    for one in measures.values():
        if not math.isfinite(one.loss):
            raise DivergedError(_diverged(one.loss, f"after epoch {epoch}", rate))
    return EpochRow(
        epoch=epoch,
        learning_rate=rate,
        running_loss=result.mean_loss,
        running_accuracy=result.accuracy,
        train_loss=measures["train"].loss,
        train_accuracy=measures["train"].accuracy,
        validation_loss=validation.loss if validation else None,
        validation_accuracy=validation.accuracy if validation else None,
        test_loss=test.loss if test else None,
        test_accuracy=test.accuracy if test else None,
        gap_loss=gap.loss,
        gap_accuracy=gap.accuracy,
    )


def refuse_divergence(result: EpochResult, epoch: int, rates: Sequence[float]) -> None:
    """Raises DivergedError where the loss of a step is no finite number."""
    bad = (~result.losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise DivergedError(_diverged(result.losses[step].item(), f"at epoch {epoch}, step {step + 1}", rates[step]))


def _diverged(loss: float, where: str, rate: float) -> str:
    return f"the loss became {loss} {where}, with learning rate {rate:g}; nothing was kept: try a smaller train.lr"


def _random_states(device: torch.device) -> list[Tensor]:
    """The streams dropout draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
