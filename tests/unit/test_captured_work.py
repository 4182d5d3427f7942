"""What a CUDA graph would record stays on its device, reads nothing back, and leaves nothing of autograd's behind.

On the meta device, which computes shapes alone, any machine can see that.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lenet5.data.datasets import Split
from lenet5.params import ModelParams, TrainParams
from lenet5.training.engine import count_all, run_steps
from lenet5.training.loop import make_model
from lenet5.training.recipe import EpochPlan, autograd, batch_loss, make_optimizer
from lenet5.training.replicas import Stack, stack_counts, stack_loss

META, CPU = torch.device("meta"), torch.device("cpu")
STEPS, BATCH, REPLICAS = 2, 8, 3
READS_BACK = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the tutorial's": ({"activation": "sigmoid"}, {}),
    "momentum": ({"pooling": "max"}, {"momentum": 0.9, "weight_decay": 1e-4}),
    "adamw": ({"c3": "paper", "activation": "tanh"}, {"optimizer": "adamw", "label_smoothing": 0.1}),
    "all of it": (
        {"c3": "paper", "dropout": 0.3},
        {
            "augmentation": {"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.5},
            "precision": "bf16",
            "loss_q": 0.3,
        },
    ),
}

Make = Callable[..., Any]


class FusedOptimizers(TorchDispatchMode):
    """A stand-in for the fused optimizers' kernels, which the meta device lacks: nothing is computed there anyway."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if _name(func).startswith("_fused_") else func(*args, **(kwargs or {}))


class OneDevice(TorchDispatchMode):
    """Fails at an operation that sees or makes a tensor of another device, or for whose result the CPU waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(_name(func))
        assert _name(func) not in READS_BACK, f"{func} reads a value back"
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            assert not isinstance(value, Tensor) or value.device == META, f"{func} on {value.device}"
        return result


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The meta device, made to look as if PyTorch had autocast and fused optimizers for it."""
    optimizers: Any = import_module("torch.optim.optimizer")  # torch.optim hides it
    real, supported = torch.autocast, optimizers._get_fused_kernels_supported_devices
    monkeypatch.setattr(torch, "autocast", lambda _device, *args, **kwargs: real("cpu", *args, **kwargs))
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: [*supported(), META.type])
    with FusedOptimizers():
        yield META


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, model_params: Make, train_params: Make) -> tuple[ModelParams, TrainParams]:
    model, train = RECIPES[request.param]
    return model_params(**model), train_params(**train, batch_size=BATCH)


@pytest.fixture
def split(random_split: Make) -> Split:
    images: Split = random_split(20, 1)
    return images


def inputs(device: torch.device, *replicas: int) -> tuple[Tensor, ...]:
    """The tensors of a plan, and rates, of a launch whose last batch is a smaller one."""
    images = (STEPS * BATCH + 3, *replicas)
    plan = EpochPlan(
        order=torch.zeros(images, dtype=torch.long, device=device),
        flips=torch.zeros(images, dtype=torch.bool, device=device),
        shifts=torch.zeros(*images, 2, dtype=torch.long, device=device),
        boxes=torch.zeros(*images, 4, dtype=torch.uint8, device=device),
        partners=torch.zeros(images, dtype=torch.long, device=device),
        patches=torch.zeros(*images, 4, dtype=torch.uint8, device=device),
    )
    return *plan, torch.full((STEPS + 1,), 0.1, device=device)


def test_training_and_measuring_stay_on_the_device(
    meta: torch.device, recipe: tuple[ModelParams, TrainParams], split: Split
) -> None:
    model = make_model(recipe[0], 0, meta)
    optimizer, data, plan = make_optimizer(model.parameters(), recipe[1]), split.to(meta), inputs(meta)
    gradients = partial(autograd, partial(batch_loss, model, data, recipe[1]), optimizer)
    with OneDevice() as watch:
        results = run_steps(model, optimizer, gradients, gradients, BATCH, *plan)
        counts = count_all(model, [data, data])
    assert results.shape == (2, STEPS + 1)
    assert counts.shape == (2, 2)
    assert "copy_" not in watch.seen, "the learning rate is read where it lies"
    assert {"convolution_backward", f"_fused_{recipe[1].optimizer}_"} <= watch.seen


def test_training_and_measuring_replicas_stay_on_the_device(
    meta: torch.device, recipe: tuple[ModelParams, TrainParams], split: Split
) -> None:
    stack = Stack([make_model(recipe[0], seed, meta) for seed in range(REPLICAS)])
    optimizer, data, plan = make_optimizer(stack.parameters(), recipe[1]), split.to(meta), inputs(meta, REPLICAS)
    gradients = partial(autograd, partial(stack_loss, stack, data, recipe[1]), optimizer)
    with OneDevice() as watch:
        results = run_steps(stack, optimizer, gradients, gradients, BATCH, *plan)
        counts = stack_counts(stack, [data, data])
    assert results.shape == (2, STEPS + 1, REPLICAS)
    assert counts.shape == (2, REPLICAS, 2)
    assert {"convolution_backward", f"_fused_{recipe[1].optimizer}_"} <= watch.seen


class Token:
    """Lives as long as the node of autograd's that it is hung on."""


def test_no_node_that_gathers_a_gradient_outlives_its_step(
    recipe: tuple[ModelParams, TrainParams], split: Split
) -> None:
    model = make_model(recipe[0], 0, CPU)
    optimizer = make_optimizer(model.parameters(), recipe[1])
    tokens: list[weakref.ref[Token]] = []

    def watched(*batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = batch_loss(model, split, recipe[1], *batch)
        for weight in model.parameters():
            token = Token()
            torch.autograd.graph.get_gradient_edge(weight).node.metadata["token"] = token
            tokens.append(weakref.ref(token))
            del token
        assert all(token() for token in tokens[-len(list(model.parameters())) :]), "the graph holds its nodes"
        return loss, correct

    gradients = partial(autograd, watched, optimizer)
    results = run_steps(model, optimizer, gradients, gradients, BATCH, *inputs(CPU))
    gc.collect()
    assert results.isfinite().all()
    assert len(tokens) == (STEPS + 1) * len(list(model.parameters()))
    assert not any(token() for token in tokens)
