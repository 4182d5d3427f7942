import os
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lenet5.data.datasets import Split, Splits, to_float
from lenet5.errors import UserError
from lenet5.network.lenet5 import LeNet5
from lenet5.params import AugmentationParams, ModelParams, TrainParams
from lenet5.results.evaluation import measure
from lenet5.training import engine as engine_module
from lenet5.training.cuda_graph import WARM_UPS
from lenet5.training.device import pick_device, set_deterministic, set_precision
from lenet5.training.engine import Engine, EngineChoice, EpochResult, choose_engine, count_all
from lenet5.training.recipe import EpochPlan, batch_loss, draw_batch, draw_plan, loss_of_logits, mix_labels

TrainParamsOf = Callable[..., TrainParams]
EAGER = EngineChoice("eager", False, "")
GRAPH = EngineChoice("graph", False, "")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def plan_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train_epoch(model: LeNet5, data: Split, plan: EpochPlan, rates: list[float], params: TrainParams) -> EpochResult:
    splits = Splits(data, data, None, data)
    engine = Engine(EAGER, model, splits, params)
    return engine.train_epoch(plan, rates)


@pytest.fixture
def model(model_params: Callable[..., ModelParams]) -> LeNet5:
    torch.manual_seed(0)
    return LeNet5(model_params())


def test_the_running_loss_of_many_steps_is_the_same_with_any_number_of_threads() -> None:
    before, generator, found = torch.get_num_threads(), torch.Generator().manual_seed(0), set()
    losses = [torch.rand(55_000, generator=generator, dtype=torch.float64) for _ in range(10)]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results = [EpochResult.of(one, torch.ones_like(one), len(one), 1) for one in losses]
            found.add(tuple(result.mean_loss for result in results))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_running_figures_weigh_every_image_alike_though_the_last_batch_is_smaller(
    model: LeNet5, train_params: TrainParamsOf, random_split: Callable[[int, int], Split]
) -> None:
    data, params = random_split(10, 0), train_params(batch_size=4)
    plan = draw_plan(10, params.augmentation, plan_generator())
    logits = model(to_float(data.images))
    losses = F.cross_entropy(logits, data.labels, reduction="none")
    still = train_epoch(model, data, plan, [0.0] * 3, params)
    assert still.mean_loss == pytest.approx(losses.mean().item())
    assert still.accuracy == (logits.argmax(1) == data.labels).sum().item() / 10
    by_step = [losses[batch].mean().item() for batch in plan.order.split(4)]
    assert still.losses.tolist() == pytest.approx(by_step)
    assert still.mean_loss != pytest.approx(np.mean(by_step))


@pytest.mark.parametrize(("smoothing", "q"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.2, 1.0)])
@pytest.mark.parametrize(
    "augmentation", [(False, 0, 0, 0), (True, 0, 0, 0), (False, 3, 0, 0), (False, 0, 1, 0), (False, 0, 0, 1)]
)
def test_an_epoch_is_plain_gradient_descent_along_its_plan(
    model: LeNet5,
    train_params: TrainParamsOf,
    random_split: Callable[[int, int], Split],
    smoothing: float,
    q: float,
    augmentation: tuple[bool, int, float, float],
) -> None:
    data, rates = random_split(10, 0), [0.1, 0.3, 0.05]
    flip, shift, erasing, cutmix = augmentation
    changes = AugmentationParams(horizontal_flip=flip, shift=shift, erasing=erasing, cutmix=cutmix)
    params = train_params(batch_size=4, label_smoothing=smoothing, loss_q=q, augmentation=changes)
    plan = draw_plan(10, changes, plan_generator())
    by_hand = deepcopy(model)
    train_epoch(model, data, plan, rates, params)
    for step, rate in enumerate(rates):
        places = slice(step * 4, step * 4 + 4)
        batch = EpochPlan(*(part[places] for part in plan))
        logits = by_hand(draw_batch(data.images, changes, batch)[:, None] / 255)
        targets = mix_labels(data.labels[batch.order], data.labels, changes, batch)
        loss = loss_of_logits(logits, targets, params, "mean")
        weights = list(by_hand.parameters())
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= rate * gradient
    for actual, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_asking_for_cuda_without_cuda_is_a_mistake_a_person_can_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"train\.device: cuda.* set it to auto or cpu"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("name", "available", "device"),
    [
        ("auto", False, "cpu"),
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("auto", True, "cuda"),
        ("cuda", True, "cuda"),
    ],
)
def test_device_names(monkeypatch: pytest.MonkeyPatch, name: str, available: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    assert pick_device(name) == torch.device(device)


@pytest.fixture
def _deterministic_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("_deterministic_as_before")
def test_deterministic_can_be_switched_on_and_off() -> None:
    set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def replaying(
    function: Callable[[], Tensor], warm_up: Callable[[], object], state: Sequence[Tensor]
) -> tuple[Callable[[], None], Tensor]:
    """What cuda_graph.record does, without a GPU: warm up, put back, and compute into memory that stays."""
    saved, random = [tensor.detach().clone() for tensor in state], torch.get_rng_state()
    for _ in range(WARM_UPS):
        warm_up()
    result = function()
    with torch.no_grad():
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
    torch.set_rng_state(random)
    return lambda: result.copy_(function()), result


COMBINATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"momentum": 0.9, "schedule": "cosine"}),
    ({"pooling": "max", "c3": "paper"}, {"optimizer": "adamw", "lr": 0.002, "schedule": "onecycle"}),
    ({"activation": "sigmoid"}, {"weight_decay": 0.01, "batch_size": 32}),
    (
        {"dropout": 0.3},
        {
            "augmentation": {"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.5},
            "label_smoothing": 0.1,
            "loss_q": 0.3,
        },
    ),
]


@pytest.mark.parametrize("launch", [1, 2, 500])
@pytest.mark.parametrize(("model_changes", "changes"), COMBINATIONS, ids=str)
def test_recorded_steps_see_each_epochs_plan_rates_and_weights_and_nothing_of_the_warm_up(
    model_params: Callable[..., ModelParams],
    train_params: TrainParamsOf,
    splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
    model_changes: dict[str, Any],
    changes: dict[str, Any],
    launch: int,
) -> None:
    monkeypatch.setattr(engine_module, "STEPS_A_LAUNCH", launch)
    params = train_params(**changes)
    steps = -(-len(splits.train) // params.batch_size)
    histories = []
    for choice in (EAGER, GRAPH):
        torch.manual_seed(0)
        model = LeNet5(model_params(**model_changes))
        engine = Engine(choice, model, splits, params, replaying)
        generator, history, middle = plan_generator(), [], None
        for epoch in range(3):
            plan = draw_plan(len(splits.train), params.augmentation, generator)
            result = engine.train_epoch(plan, [0.05 / (epoch + 1 + step) for step in range(steps)])
            history.append((result.losses.tolist(), result.accuracy, engine.measure()))
            middle = middle or (deepcopy(engine.state_dict()), generator.get_state(), torch.get_rng_state())
        engine.load_state_dict(middle[0])
        generator.set_state(middle[1])
        torch.set_rng_state(middle[2])
        plan = draw_plan(len(splits.train), params.augmentation, generator)
        again = engine.train_epoch(plan, [0.05 / (2 + step) for step in range(steps)])
        assert (again.losses.tolist(), again.accuracy, engine.measure()) == history[1]
        histories.append(history)
    assert histories[0] == histories[1]


def test_an_engine_measures_what_evaluation_measures(
    model: LeNet5, train_params: TrainParamsOf, splits: Splits
) -> None:
    params = train_params()
    engine = Engine(EAGER, model, splits, params)
    assert engine.measure() == {name: measure(model, split) for name, split in splits.measured().items()}


@pytest.mark.parametrize(
    ("triton", "epochs", "compiles", "reason"),
    [
        (True, 1, False, "not compiled: 275 steps do not repay it"),
        (True, 2000, True, "its step compiled: 550,000 steps repay it"),
        (False, 2000, False, "not compiled, for want of a thing"),
    ],
)
def test_auto_takes_a_graph_on_cuda_and_compiles_its_step_where_that_pays(
    model_params: Callable[..., ModelParams], train_params: TrainParamsOf, monkeypatch: pytest.MonkeyPatch,
    triton: bool, epochs: int, compiles: bool, reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(engine_module.inductor, "lacking", lambda: None if triton else "a thing")
    params = train_params(engine="auto", epochs=epochs, batch_size=200)
    choice = choose_engine(model_params(), params, 55_000, CUDA)
    assert (choice.name, choice.compiles) == ("graph", compiles)
    assert re.search(reason, choice.reason)


@pytest.mark.parametrize("engine", ["eager", "compiled", "graph"])
def test_an_engine_asked_for_on_cuda_is_taken(
    model_params: Callable[..., ModelParams], train_params: TrainParamsOf, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(engine_module.inductor, "lacking", lambda: None)
    assert choose_engine(model_params(), train_params(engine=engine), 100, CUDA).name == engine


def test_engines_that_cannot_work_here_are_mistakes_a_person_can_mend(
    model_params: Callable[..., ModelParams], train_params: TrainParamsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_params()
    for engine in ("graph", "compiled"):
        with pytest.raises(UserError, match=rf"train\.engine: {engine} is for CUDA devices"):
            choose_engine(model, train_params(engine=engine), 100, CPU)
    with pytest.raises(UserError, match=r"train\.engine: lanes is for CPUs"):
        choose_engine(model, train_params(engine="lanes"), 100, CUDA)
    monkeypatch.setattr(engine_module.inductor, "lacking", lambda: "the package triton")
    with pytest.raises(UserError, match=r"train\.engine: compiled needs the package triton; see to that"):
        choose_engine(model, train_params(engine="compiled"), 100, CUDA)
    with pytest.raises(UserError, match=r"train\.precision: tf32 is for CUDA devices"):
        set_precision("tf32", CPU)


def test_tf32_is_what_precision_says_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    for precision, allowed in (("tf32", True), ("bf16", False), ("fp32", False)):
        set_precision(precision, CUDA)
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed


@pytest.mark.parametrize(("model_changes", "changes"), COMBINATIONS, ids=str)
def test_loss_and_measuring_on_cuda_wait_for_nothing_and_mix_no_devices(
    model_params: Callable[..., ModelParams],
    train_params: TrainParamsOf,
    model_changes: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    # Tensors without content need no GPU, and reading one, which no CUDA graph could hold, raises.
    params = train_params(**changes)
    with FakeTensorMode(), CUDA, torch.no_grad():
        model = LeNet5(model_params(**model_changes))
        data = Split(torch.empty(32, 28, 28, dtype=torch.uint8), torch.empty(32, dtype=torch.long))
        order, corners = torch.arange(10), torch.zeros(10, 4, dtype=torch.uint8)
        flips, shifts = torch.zeros(10, dtype=torch.bool), torch.zeros(10, 2, dtype=torch.long)
        loss, correct = batch_loss(model, data, params, order, flips, shifts, corners, order, corners)
        counts = count_all(model, [data, data])
        with pytest.raises(DataDependentOutputException):
            loss.item()
    assert {loss.device.type, correct.device.type, counts.device.type} == {"cuda"}
    assert counts.shape == (2, 2)
