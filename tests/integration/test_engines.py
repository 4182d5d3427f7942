"""Every engine computes what the eager one computes, and computes it again."""

import io
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from lenet5 import lanes
from lenet5.compiler import compiler_found
from lenet5.datasets import Split, Splits, load_test, to_float
from lenet5.engine import Engine, EngineChoice, choose_engine, set_deterministic
from lenet5.params import Params, load_params
from lenet5.recipe import draw_plan, learning_rates, make_optimizer
from lenet5.training import Training, make_model

STEPS, BATCH = 300, 32
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EAGER = EngineChoice("eager", False, False, "")

pytestmark = pytest.mark.soak

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here")
needs_compiler = pytest.mark.skipif(not compiler_found(), reason="torch.compile needs a C++ compiler, none is here")
needs_lanes = pytest.mark.skipif(not lanes.buildable(), reason="lanes.cpp needs Linux and a C++ compiler")
ENGINES = [
    pytest.param(CPU, EngineChoice("compiled", True, False, ""), id="compiled", marks=needs_compiler),
    pytest.param(CPU, EngineChoice("eager", False, True, ""), id="lanes", marks=needs_lanes),
    pytest.param(
        CPU, EngineChoice("compiled", True, True, ""), id="lanes-compiled", marks=[needs_lanes, needs_compiler]
    ),
    pytest.param(
        CUDA, EngineChoice("compiled", True, False, ""), id="cuda-compiled", marks=[needs_cuda, needs_compiler]
    ),
    pytest.param(CUDA, EngineChoice("graph", False, False, ""), id="cuda-graph", marks=needs_cuda),
    pytest.param(
        CUDA, EngineChoice("graph", True, False, ""), id="cuda-graph-compiled", marks=[needs_cuda, needs_compiler]
    ),
]
# No relu: rounding puts an input on either side of its kink, which switches a gradient on or off, and after some 70
# steps the losses of any two ways to add up are apart.
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
        "model.activation": "tanh", "train.lr": 0.05, "train.label_smoothing": 0.1,
        "train.augmentation": {"horizontal_flip": True, "shift": 2},
    },
}  # fmt: skip
RANDOM = {"model.dropout": 0.3, "train.augmentation": {"horizontal_flip": True, "shift": 2}, "train.lr": 0.1}


def recipe(tmp_path: Path, changes: dict[str, Any]) -> Params:
    content = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    content["train"] |= {"batch_size": BATCH, "epochs": 3}
    for name, value in changes.items():
        section, key = name.split(".")
        content[section][key] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return load_params(tmp_path / "params.yaml")


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


def train(params: Params, images: Split, device: torch.device, choice: EngineChoice) -> torch.Tensor:
    """The loss of each of the first steps."""
    set_deterministic(True)
    model = make_model(params.model, 0, device)
    engine = Engine(choice, model, make_optimizer(model.parameters(), params.train), on(device, images), params.train)
    generator = torch.Generator().manual_seed(0)
    epoch = -(-len(images) // BATCH)
    rates, losses = learning_rates(params.train, 4 * epoch), []
    while len(losses) * epoch < STEPS:
        plan = draw_plan(len(images), params.train.augmentation, generator)
        losses.append(engine.train_epoch(plan, rates[len(losses) * epoch :][:epoch]).losses)
    return torch.cat(losses)[:STEPS]


def largest_difference(losses: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.isfinite().all()
    assert len(losses) == len(expected) == STEPS
    return ((losses - expected).abs() / expected).max().item()


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize(("device", "choice"), ENGINES)
def test_the_loss_of_each_step_is_the_eager_engines(
    tmp_path: Path, images: Split, report: Any, combination: str, device: torch.device, choice: EngineChoice
) -> None:
    params = recipe(tmp_path, COMBINATIONS[combination])
    expected = train(params, images, device, EAGER)
    difference = largest_difference(train(params, images, device, choice), expected)
    report(f"{choice.title} on {device}, {combination}: losses of {STEPS} steps within {difference:.1e} of eager's")
    assert difference < 1e-4


@needs_lanes
@needs_compiler
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_a_compiled_relu_in_lanes_has_the_gradients_of_float64(tmp_path: Path, images: Split, pooling: str) -> None:
    model = make_model(recipe(tmp_path, {"model.activation": "relu", "model.pooling": pooling}).model, 0, CPU)
    exact, few = deepcopy(model).double(), images.take(torch.arange(100))
    logits = torch.compile(lanes.laid_out(model))(to_float(few.images))
    gradients, expected = (
        torch.autograd.grad(F.cross_entropy(outputs, few.labels), weights.parameters())
        for outputs, weights in ((logits, model), (exact(to_float(few.images).double()), exact))
    )
    for found, right in zip(gradients, expected, strict=True):
        assert (found - right).abs().max() < 1e-5 * right.abs().max()


@needs_cuda
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_gpu_computes_what_a_cpu_computes(tmp_path: Path, images: Split, combination: str) -> None:
    params = recipe(tmp_path, COMBINATIONS[combination])
    expected = train(params, images, CPU, EAGER)
    assert largest_difference(train(params, images, CUDA, choose_engine(params.train, 1, CUDA)), expected) < 1e-3


@pytest.mark.parametrize(("device", "choice"), ENGINES)
def test_two_runs_on_one_device_agree_exactly_dropout_and_augmentation_included(
    tmp_path: Path, images: Split, device: torch.device, choice: EngineChoice
) -> None:
    params = recipe(tmp_path, RANDOM)
    first, second = (train(params, images, device, choice) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("device", "choice"), ENGINES)
def test_a_training_taken_up_again_ends_byte_for_byte_as_if_it_had_never_stopped(
    tmp_path: Path, images: Split, device: torch.device, choice: EngineChoice
) -> None:
    params, splits = (
        recipe(tmp_path, RANDOM | {"train.momentum": 0.9, "train.schedule": "onecycle"}),
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
