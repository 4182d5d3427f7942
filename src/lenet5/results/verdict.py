"""What a training's history says about it in words: whether it learned, overfits, and what to change."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lenet5.params import Params

if TYPE_CHECKING:
    import pandas as pd  # training needs none

_CHANCE = 0.15
"""A share of right answers up to which a model is at chance: with ten classes, guessing gives 0.1."""
GREW = 0.005
"""Half a point of accuracy: what the gap has to grow by to be called growing, on 5,000 images."""
LOSS_GREW = 0.01
"""The same for the loss gap, in nats."""
WIDE = 0.02
"""An accuracy gap of two points is worth narrowing."""


def accuracy_with_interval(figures: Mapping[str, float]) -> str:
    """The accuracy among ``figures`` in percent, with its interval, as a person reads it."""
    low, high = 100 * figures["accuracy_low"], 100 * figures["accuracy_high"]
    return f"{figures['accuracy']:.2%} [{low:.2f}, {high:.2f}]"


def at_chance(accuracy: float) -> bool:
    """Whether a share of right answers tells no more classes apart than one that is said for everything."""
    return accuracy <= _CHANCE


def verdict(history: "pd.DataFrame", chosen_epoch: int, onset: int | None, params: Params) -> str:
    """Whether the model learned, whether, when and how much it overfits, and what to change in ``params``.

    ``onset`` is the epoch of the lowest validation loss, None without validation images.
    """
    epochs = history.set_index("epoch")
    gaps, last = epochs["gap_accuracy"], len(history)
    accuracy = float(epochs["train_accuracy"][chosen_epoch])
    if at_chance(accuracy):
        return (
            f"Nothing was learned: with the weights of epoch {chosen_epoch} of {last} it is at chance, right on "
            f"{accuracy:.1%} of the training images, where guessing one class in ten is right on 10%. "
            f"{what_to_try(params)}"
        )
    if onset is None:
        return (
            f"No images were held out, so nothing shows when overfitting began: the weights of the last epoch, {last}, "
            f"are kept, {points(gaps[last])} points of accuracy better on training than on test images. "
            f"The test loss was lowest at epoch {_lowest_test_loss(history)}, "
            "which describes the curve and chose nothing. "
            "Consider holding images out (`data.validation_size: 5000`)."
        )
    if last == 1:
        return (
            f"One epoch is too few to see overfitting; the accuracy gap is {points(gaps[1])} points. "
            "Consider more epochs (`train.epochs`)."
        )
    if onset == last:
        said = (
            f"The validation loss was still at its lowest at the last epoch, {last}, "
            f"with an accuracy gap of {points(gaps[last])} points"
        )
        if gaps[last] >= WIDE:
            return " ".join([f"{said}: it overfits, though more training still helped.", *_advice(params)])
        return f"{said}: no sign of overfitting yet. Consider more epochs (`train.epochs`)."
    loss_gaps = epochs["gap_loss"]
    grew = gaps[last] - gaps[onset] >= GREW or loss_gaps[last] - loss_gaps[onset] >= LOSS_GREW
    of_accuracy = _went(points(gaps[onset]), points(gaps[last]), "points", gaps[last] - gaps[onset], GREW)
    nats = f"{loss_gaps[onset]:.3f}", f"{loss_gaps[last]:.3f}"
    of_loss = _went(*nats, "nats", loss_gaps[last] - loss_gaps[onset], LOSS_GREW)
    said = (
        f"The validation loss stopped falling at epoch {onset} of {last}; after that the accuracy gap {of_accuracy}, "
        f"the loss gap {of_loss}."
    )
    overfits = grew or gaps[chosen_epoch] >= WIDE
    return " ".join([said, *_kept(chosen_epoch, onset), *(_advice(params) if overfits else [])])


def what_to_try(params: Params) -> str:
    """What may help a training that is at chance: a learning rate that suits its optimizer and activation, or time."""
    train, model = params.train, params.model
    suits = 0.002 if train.optimizer == "adamw" else 0.9 if model.activation == "sigmoid" else 0.1
    rate = train.lr / (1 - train.momentum)  # what a gradient comes to in all
    told = f"{train.lr:g}, with `train.momentum` as {rate:g} without" if train.momentum else f"{train.lr:g}"
    recipe = f"it is {told}, and {model.activation} with {train.optimizer} learns at about {suits:g}"
    if rate > 2 * suits:
        return f"Try a smaller `train.lr`: {recipe}."
    if rate < suits / 2:
        return f"Try a larger `train.lr`: {recipe}."
    return "Try more epochs (`train.epochs`), smaller batches (`train.batch_size`) or another `train.seed`."


def points(share: float) -> str:
    """Percentage points."""
    return f"{round(100 * share, 1) + 0.0:.1f}"  # never -0.0


def _went(before: str, after: str, unit: str, change: float, least: float) -> str:
    if abs(change) < least:
        return f"hardly changed ({before} to {after} {unit})"
    return f"{'grew' if change > 0 else 'shrank'} from {before} to {after} {unit}"


def _lowest_test_loss(history: "pd.DataFrame") -> int:
    return int(history["epoch"][int(history["test_loss"].to_numpy().argmin())])


def _kept(chosen_epoch: int, onset: int) -> list[str]:
    if chosen_epoch == onset:
        return [f"The weights of epoch {onset} are kept."]
    return [
        f"The weights of epoch {chosen_epoch} are kept: consider those of {onset} (`train.weights: best_validation`)."
    ]


def _advice(params: Params) -> list[str]:
    used = {
        "train.augmentation": params.train.augmentation.changes(),
        "model.dropout": params.model.dropout > 0,
        "train.weight_decay": params.train.weight_decay > 0,
    }
    off = [f"`{name}`" for name, on in used.items() if not on]
    if off:
        return [f"To narrow the gap, consider {_either(off)} ({'now off' if len(off) == 1 else 'all off now'})."]
    return [f"To narrow the gap, consider stronger {_either([f'`{name}`' for name in used])}."]


def _either(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
