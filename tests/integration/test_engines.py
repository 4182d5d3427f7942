"""Every engine computes what the eager one computes, and computes it again."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lenet5.data.datasets import Split, Splits, load_test
from lenet5.params import Params
from lenet5.training import inductor
from lenet5.training.device import set_deterministic, set_precision
from lenet5.training.engine import Engine, EngineChoice, choose_engine
from lenet5.training.loop import Training, laid_out, make_model
from lenet5.training.recipe import draw_plan, learning_rates
from tests.params import CONTENT

from .conftest import changed

STEPS, BATCH = 300, 32
BOUND = 1e-4
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EAGER = EngineChoice("eager", False, "")

pytestmark = pytest.mark.soak

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here")
needs_triton = pytest.mark.skipif(
    torch.cuda.is_available() and inductor.lacking() is not None,
    reason="torch.compile lacks what it needs for the card",
)
ENGINES = [
    pytest.param(CPU, EngineChoice("lanes", False, ""), id="lanes"),
    pytest.param(CUDA, EngineChoice("compiled", True, ""), id="cuda-compiled", marks=[needs_cuda, needs_triton]),
    pytest.param(CUDA, EngineChoice("graph", False, ""), id="cuda-graph", marks=needs_cuda),
    pytest.param(CUDA, EngineChoice("graph", True, ""), id="cuda-graph-compiled", marks=[needs_cuda, needs_triton]),
]
# No relu: rounding puts an input on either side of its kink, which switches a gradient on or off, and after some 70
# steps the losses of any two ways to add up are apart. Max pooling with tanh does the same later: PyTorch's own eager
# engine in another memory format is 7e-4 away from itself after 300 steps.
COMBINATIONS: dict[str, dict[str, Any]] = {
    "the tutorial's": {},
    "momentum-max-cosine": {
        "model.pooling": "max", "train.lr": 0.1, "train.momentum": 0.9, "train.weight_decay": 1e-4,
        "train.schedule": "cosine",
    },
    "adamw-paper-onecycle": {
        "model.c3": "paper", "model.activation": "tanh", "train.optimizer": "adamw", "train.lr": 0.002,
        "train.schedule": "onecycle",
    },
    "tanh-smoothed-augmented": {
        "model.activation": "tanh", "train.lr": 0.25, "train.label_smoothing": 0.1, "train.loss_q": 0.3,
        "train.augmentation": {"horizontal_flip": True, "shift": 2, "erasing": 0.0, "cutmix": 0.0},
    },
    "max-dropout": {"model.pooling": "max", "model.dropout": 0.3, "train.lr": 0.1},
    "paper-dropout-adamw": {
        "model.c3": "paper", "model.dropout": 0.2, "train.optimizer": "adamw", "train.lr": 0.002,
        "train.weight_decay": 0.04,
    },
    "flipped-momentum": {
        "model.activation": "tanh", "train.momentum": 0.9, "train.lr": 0.02,
        "train.augmentation": {"horizontal_flip": True, "shift": 0, "erasing": 0.0, "cutmix": 0.0},
    },
    "all-of-it": {
        "model.c3": "paper", "model.pooling": "max", "model.dropout": 0.1,
        "train.optimizer": "adamw", "train.lr": 0.002, "train.schedule": "cosine", "train.label_smoothing": 0.05,
        "train.augmentation": {"horizontal_flip": True, "shift": 1, "erasing": 0.3, "cutmix": 0.5},
    },
}  # fmt: skip
# From the usual first weights these learn next to nothing in 300 steps, for sigmoids are flat, and no rounding shows.
# They begin with weights so many times larger.
STEEPER = {"the tutorial's": 3.0, "momentum-max-cosine": 2.2, "max-dropout": 3.0, "all-of-it": 3.0}
RANDOM = {
    "model.dropout": 0.3,
    "train.augmentation": {"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.5},
    "train.lr": 0.1,
}


# The tutorial's, with a small batch.
TUTORIAL = {
    "model.activation": "sigmoid", "train.lr": 0.9, "train.batch_size": BATCH, "train.device": "auto",
    "train.engine": "auto",
}  # fmt: skip


def recipe(changes: dict[str, Any]) -> Params:
    return Params.model_validate(changed(CONTENT, TUTORIAL | changes))


@pytest.fixture(autouse=True)
def _compiles_anew() -> None:
    torch.compiler.reset()  # it compiles for eight models in a process, and then no more


@pytest.fixture(scope="module")
def images(data: Path) -> Split:
    # 94 whole batches and a smaller one: the 300 steps go through epochs and through batches of both sizes.
    return load_test(data).take(torch.arange(94 * BATCH + 5))


def on(device: torch.device, images: Split) -> Splits:
    data = images.to(device)
    few = data.take(torch.arange(200, device=device))
    return Splits(data, few, few, few)


def train(
    params: Params, images: Split, device: torch.device, choice: EngineChoice, steeper: float = 1.0
) -> torch.Tensor:
    """The loss of each of the first steps, from first weights that are ``steeper`` times the usual ones."""
    set_deterministic(True)
    set_precision(params.train.precision, device)  # cuDNN computes in TF32 unless told otherwise
    model = laid_out(make_model(params.model, 0, device), choice)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(steeper)
    engine = Engine(choice, model, on(device, images), params.train)
    generator = torch.Generator().manual_seed(0)
    epoch = -(-len(images) // BATCH)
    recipe, losses = params.train.model_copy(update={"epochs": 4}), list[torch.Tensor]()
    while len(losses) * epoch < STEPS:
        plan = draw_plan(len(images), params.train.augmentation, generator)
        losses.append(engine.train_epoch(plan, learning_rates(recipe, epoch, len(losses) + 1)).losses)
    return torch.cat(losses)[:STEPS]


def largest_difference(losses: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.isfinite().all()
    assert len(losses) == len(expected) == STEPS
    return ((losses - expected).abs() / expected).max().item()


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize(("device", "choice"), ENGINES)
def test_the_loss_of_each_step_is_the_eager_engines(
    images: Split, report: Any, combination: str, device: torch.device, choice: EngineChoice
) -> None:
    params, steeper = recipe(COMBINATIONS[combination]), STEEPER.get(combination, 1.0)
    if params.model.dropout and choice.compiles:
        pytest.skip("what is compiled draws dropout from a stream of its own")
    expected = train(params, images, device, EAGER, steeper)
    difference = largest_difference(train(params, images, device, choice, steeper), expected)
    report(f"{choice.name} on {device}, {combination}: losses of {STEPS} steps within {difference:.1e} of eager's")
    assert difference < BOUND


class ConvolutionsInTF32(TorchDispatchMode):
    """Rounds the factors of convolutions to TF32's ten bits: what cuDNN does unless told otherwise."""

    FACTORS: ClassVar = {"convolution": 2, "convolution_backward": 3}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = self.FACTORS.get(func.overloadpacket.__name__, 0)
        return func(*map(self._rounded, args[:factors]), *args[factors:], **(kwargs or {}))

    @staticmethod
    def _rounded(factor: torch.Tensor) -> torch.Tensor:
        dropped = 23 - 10
        bits = factor.contiguous().view(torch.int32) + (1 << dropped - 1)
        return (bits & -(1 << dropped)).view(torch.float32)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_tf32_in_place_of_fp32_would_miss_the_bound(
    images: Split, report: Any, combination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, steeper = recipe(COMBINATIONS[combination]), STEEPER.get(combination, 1.0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as PyTorch has it
    expected = train(params, images, CPU, EAGER, steeper)
    assert not torch.backends.cudnn.allow_tf32
    with ConvolutionsInTF32():
        rounded = train(params, images, CPU, EAGER, steeper)
    difference = largest_difference(rounded, expected)
    report(f"convolutions in TF32, {combination}: losses of {STEPS} steps within {difference:.1e} of fp32's")
    assert difference > BOUND


@needs_cuda
@pytest.mark.parametrize("combination", [name for name, one in COMBINATIONS.items() if "model.dropout" not in one])
def test_a_gpu_computes_what_a_cpu_computes(images: Split, combination: str) -> None:
    params, steeper = recipe(COMBINATIONS[combination]), STEEPER.get(combination, 1.0)
    expected = train(params, images, CPU, EAGER, steeper)
    choice = choose_engine(params.model, params.train, 1, CUDA)
    assert largest_difference(train(params, images, CUDA, choice, steeper), expected) < 1e-3


@pytest.mark.parametrize(("device", "choice"), ENGINES)
def test_two_runs_on_one_device_agree_exactly_dropout_and_augmentation_included(
    images: Split, device: torch.device, choice: EngineChoice
) -> None:
    params = recipe(RANDOM)
    first, second = (train(params, images, device, choice) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("device", "choice"), ENGINES)
def test_a_training_taken_up_again_ends_byte_for_byte_as_if_it_had_never_stopped(
    images: Split, device: torch.device, choice: EngineChoice
) -> None:
    params, splits = (
        recipe(RANDOM | {"train.momentum": 0.9, "train.schedule": "onecycle"}),
        on(device, images),
    )

    def start() -> Training:
        return Training(make_model(params.model, 0, device), splits, params.train, choice)

    whole, buffer = start(), io.BytesIO()
    for row in whole.epochs():
        if row.epoch == 1:
            torch.save(whole.state_dict(), buffer)
    resumed = start()
    resumed.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    rest: Sequence[Any] = list(resumed.epochs())
    assert len(rest) == 2
    assert resumed.rows == whole.rows
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
