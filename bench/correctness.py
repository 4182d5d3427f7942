"""What has to hold of every engine on a device, in 20 steps. ``bench/gpu.py`` and ``tests/gpu`` ask it.

Needs torch, numpy and pydantic alone.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lenet5.data.datasets import Split, Splits
from lenet5.params import ModelParams, TrainParams
from lenet5.training import inductor
from lenet5.training.device import set_deterministic, set_precision
from lenet5.training.engine import EngineChoice
from lenet5.training.loop import Training, make_model
from tutorial import BATCH, LEARNING_RATE

EPOCHS, STEPS_AN_EPOCH = 4, 5
SMALL_BATCH = 32
CLOSE = 1e-4
"""Two ways to add up may differ by so much, as a part of the loss; the same as for 300 steps in the soak tests."""

EAGER = EngineChoice("eager", False, "")
Recipe = tuple[ModelParams, TrainParams]


def recipe(changes: Mapping[str, Any] = {}) -> Recipe:
    """The tutorial's recipe with ``changes``, of which the network's are those that it knows."""
    network = {"activation": "sigmoid", "pooling": "avg", "c3": "full", "dropout": 0.0}
    training: dict[str, Any] = {
        "epochs": EPOCHS, "batch_size": BATCH, "optimizer": "sgd", "lr": LEARNING_RATE, "momentum": 0.0,
        "weight_decay": 0.0, "schedule": "constant", "label_smoothing": 0.0, "loss_q": 0.0,
        "augmentation": {"horizontal_flip": False, "shift": 0, "erasing": 0.0, "cutmix": 0.0},
        "patience": 0, "weights": "last", "seed": 0, "deterministic": True, "device": "auto", "engine": "auto",
        "precision": "fp32",
    }  # fmt: skip
    own = {name: value for name, value in changes.items() if name in network}
    rest = {name: value for name, value in changes.items() if name not in network}
    return ModelParams.model_validate(network | own), TrainParams.model_validate(training | rest)


RECIPES = {
    name: recipe({"batch_size": SMALL_BATCH} | changes)
    for name, changes in {
        "the tutorial's": {},
        "momentum and max": {
            "pooling": "max", "activation": "tanh", "lr": 0.05, "momentum": 0.9, "schedule": "cosine",
        },
        "AdamW and the paper's C3": {
            "c3": "paper", "activation": "tanh", "optimizer": "adamw", "lr": 0.002, "schedule": "onecycle",
        },
        "dropout, augmented and smoothed": {
            "activation": "tanh", "dropout": 0.3, "lr": 0.05, "label_smoothing": 0.1,
            "augmentation": {"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.0},
        },
        "mixed, augmented and smoothed": {
            "activation": "tanh", "lr": 0.05, "label_smoothing": 0.1, "loss_q": 0.3,
            "augmentation": {"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.5},
        },
    }.items()
}  # fmt: skip


def engines(device: torch.device) -> dict[str, EngineChoice]:
    """Every engine that can be had on ``device``, by its name in the tables."""
    if device.type == "cpu":
        return {"eager": EAGER}  # lanes need more packages, and have tests of their own
    plain = {"eager": EAGER, "graph": EngineChoice("graph", False, "")}
    if inductor.lacking():
        return plain
    return plain | {"compiled": EngineChoice("compiled", True, ""), "graph-compiled": EngineChoice("graph", True, "")}


def stand_in(size: int, seed: int) -> Split:
    """So many images that can be learnt, in place of FashionMNIST: each class a pattern of its own under noise."""
    patterns = torch.randint(0, 128, (10, 28, 28), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (size,), generator=generator)
    noise = torch.randint(0, 128, (size, 28, 28), generator=generator)
    return Split((patterns[labels] + noise).to(torch.uint8), labels)


def same_twice(recipe: Recipe, choice: EngineChoice, device: torch.device) -> None:
    """Two trainings end with the same bytes."""
    _assert_same(*(trained(recipe, choice, device) for _ in range(2)))


def same_resumed(recipe: Recipe, choice: EngineChoice, device: torch.device) -> None:
    """A training taken up in the middle ends with the bytes of one that never stopped."""
    whole, kept = start(recipe, choice, device), io.BytesIO()
    for row in whole.epochs():
        if row.epoch == EPOCHS // 2:
            torch.save(whole.state_dict(), kept)
    resumed = start(recipe, choice, device)
    resumed.load_state_dict(torch.load(io.BytesIO(kept.getvalue()), weights_only=True))
    assert len(list(resumed.epochs())) == EPOCHS - EPOCHS // 2, "it did not go on from the middle"
    _assert_same(resumed, whole)


def as_eager(recipe: Recipe, choice: EngineChoice, device: torch.device) -> None:
    """What eager computes: to the bit where the same kernels are recorded, closely where others add up."""
    if recipe[0].dropout and choice.compiles:
        return  # what is compiled draws dropout from a stream of its own
    training, expected = (trained(recipe, one, device) for one in (choice, EAGER))
    if choice.name == "graph" and not choice.compiles:
        _assert_same(training, expected)
    pairs = zip(training.rows, expected.rows, strict=True)
    off = max(abs(one.running_loss - other.running_loss) / other.running_loss for one, other in pairs)
    assert off < CLOSE, f"losses {off:.1e} away from eager's"


CHECKS: dict[str, Callable[[Recipe, EngineChoice, torch.device], None]] = {
    "as eager": as_eager,
    "the same twice": same_twice,
    "the same resumed": same_resumed,
}


def start(recipe: Recipe, choice: EngineChoice, device: torch.device) -> Training:
    """A training of a few whole batches and a smaller one an epoch."""
    model, params = recipe
    set_deterministic(params.deterministic)
    set_precision(params.precision, device)
    train = stand_in((STEPS_AN_EPOCH - 1) * SMALL_BATCH + 5, 1).to(device)
    splits = Splits(train, train, stand_in(40, 2).to(device), stand_in(40, 3).to(device))
    return Training(make_model(model, 0, device), splits, params, choice)


def trained(recipe: Recipe, choice: EngineChoice, device: torch.device) -> Training:
    """The same, at its end."""
    training = start(recipe, choice, device)
    assert len(list(training.epochs())) == EPOCHS, "it did not go through all epochs"
    return training


def _assert_same(one: Training, other: Training) -> None:
    assert one.rows == other.rows, "other losses"
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights), "other weights"
