import os
from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torchvision.transforms.functional import to_tensor

from lenet5.datasets import Split
from lenet5.engine import (
    augment,
    draw_plan,
    learning_rates,
    make_optimizer,
    pick_device,
    set_deterministic,
    to_float,
    train_epoch,
)
from lenet5.errors import UserError
from lenet5.model import LeNet5
from lenet5.params import AugmentationParams, ModelParams, TrainParams

TrainParamsOf = Callable[..., TrainParams]
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer, int], LRScheduler]] = {
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
    "onecycle": lambda optimizer, steps: OneCycleLR(optimizer, 0.1, total_steps=steps, cycle_momentum=False),
}


def plan_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model(model_params: Callable[..., ModelParams]) -> LeNet5:
    torch.manual_seed(0)
    return LeNet5(model_params())


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
@pytest.mark.parametrize("steps", [2, 7, 100, 999])
def test_learning_rates_are_those_of_pytorchs_schedulers(
    train_params: TrainParamsOf, schedule: str, steps: int
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = SCHEDULERS[schedule](optimizer, steps)
    expected = []
    for step in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    assert learning_rates(train_params(schedule=schedule, lr=0.1), steps) == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


def test_constant_learning_rate(train_params: TrainParamsOf) -> None:
    assert learning_rates(train_params(lr=0.9), 4) == [0.9] * 4


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@given(steps=st.integers(1, 200))
def test_every_step_has_a_learning_rate_that_never_exceeds_the_one_set(
    train_params: TrainParamsOf, schedule: str, steps: int
) -> None:
    rates = learning_rates(train_params(schedule=schedule, lr=0.5), steps)
    assert len(rates) == steps
    assert all(0 < rate <= 0.5 for rate in rates)


def augment_by_hand(image: torch.Tensor, flip: bool, down: int, right: int) -> np.ndarray:
    pixels = np.fliplr(image.numpy()) if flip else image.numpy()
    moved = np.zeros_like(pixels)
    for row in range(28):
        for column in range(28):
            if 0 <= row - down < 28 and 0 <= column - right < 28:
                moved[row, column] = pixels[row - down, column - right]
    return moved


@given(st.lists(st.tuples(st.booleans(), st.integers(-29, 29), st.integers(-29, 29)), min_size=1, max_size=3))
def test_augmentation_mirrors_and_then_moves_and_black_moves_in(changes: list[tuple[bool, int, int]]) -> None:
    images = torch.randint(1, 256, (len(changes), 28, 28), dtype=torch.uint8, generator=plan_generator())
    flips, downs, rights = (torch.tensor(column) for column in zip(*changes, strict=True))
    result = augment(images, flips, torch.stack([downs, rights], dim=1))
    assert result.dtype == torch.uint8
    for image, change, changed in zip(images, changes, result, strict=True):
        np.testing.assert_array_equal(changed.numpy(), augment_by_hand(image, *change))


@given(st.integers(1, 300), st.booleans(), st.integers(0, 14), st.integers(0, 10))
def test_every_image_comes_once_an_epoch(size: int, flip: bool, shift: int, seed: int) -> None:
    plan = draw_plan(size, AugmentationParams(horizontal_flip=flip, shift=shift), plan_generator(seed))
    assert plan.order.sort().values.tolist() == list(range(size))
    assert plan.flips.shape == (size,)
    assert plan.shifts.shape == (size, 2)
    assert plan.shifts.abs().max() <= shift
    assert flip or not plan.flips.any()


def test_half_the_images_are_mirrored_and_all_shifts_occur() -> None:
    plan = draw_plan(2000, AugmentationParams(horizontal_flip=True, shift=2), plan_generator())
    assert 900 < plan.flips.sum() < 1100
    for axis in plan.shifts.T:
        assert axis.unique().tolist() == [-2, -1, 0, 1, 2]


def test_the_seed_decides_the_plan_and_each_epoch_has_its_own() -> None:
    augmentation = AugmentationParams(horizontal_flip=True, shift=3)
    generator = plan_generator(1)
    first, second = (draw_plan(50, augmentation, generator) for _ in range(2))
    again = draw_plan(50, augmentation, plan_generator(1))
    other = draw_plan(50, augmentation, plan_generator(2))
    for name in ("order", "flips", "shifts"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_running_figures_weigh_every_image_alike_though_the_last_batch_is_smaller(
    model: LeNet5, train_params: TrainParamsOf, random_split: Callable[[int, int], Split]
) -> None:
    data, params = random_split(10, 0), train_params(batch_size=4)
    plan = draw_plan(10, params.augmentation, plan_generator())
    logits = model(to_float(data.images))
    losses = F.cross_entropy(logits, data.labels, reduction="none")
    still = train_epoch(model, make_optimizer(model, params), data, plan, [0.0] * 3, params)
    assert still.mean_loss == pytest.approx(losses.mean().item())
    assert still.accuracy == (logits.argmax(1) == data.labels).sum().item() / 10
    by_step = [losses[batch].mean().item() for batch in plan.order.split(4)]
    assert still.losses.tolist() == pytest.approx(by_step)
    assert still.mean_loss != pytest.approx(np.mean(by_step))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("augmentation", [(False, 0), (True, 0), (False, 3)])
def test_an_epoch_is_plain_gradient_descent_along_its_plan(
    model: LeNet5,
    train_params: TrainParamsOf,
    random_split: Callable[[int, int], Split],
    smoothing: float,
    augmentation: tuple[bool, int],
) -> None:
    data, rates = random_split(10, 0), [0.1, 0.3, 0.05]
    changes = AugmentationParams(horizontal_flip=augmentation[0], shift=augmentation[1])
    params = train_params(batch_size=4, label_smoothing=smoothing, augmentation=changes)
    plan = draw_plan(10, changes, plan_generator())
    by_hand = deepcopy(model)
    train_epoch(model, make_optimizer(model, params), data, plan, rates, params)
    for step, rate in enumerate(rates):
        places = slice(step * 4, step * 4 + 4)
        images = augment(data.images[plan.order[places]], plan.flips[places], plan.shifts[places])
        logits = by_hand(images[:, None] / 255)
        loss = F.cross_entropy(logits, data.labels[plan.order[places]], label_smoothing=smoothing)
        weights = list(by_hand.parameters())
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= rate * gradient
    for actual, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_to_float_is_what_torchvision_does() -> None:
    image = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    assert set(image.ravel()) == set(range(256))
    batch = to_float(torch.from_numpy(image)[None])
    assert torch.equal(batch[0], to_tensor(image))
    assert batch.dtype == torch.float32


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
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        ({"optimizer": "adamw", "weight_decay": 0.02}, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.02}),
        ({"optimizer": "adamw"}, torch.optim.AdamW, {"weight_decay": 0.0}),
    ],
)
def test_the_optimizer_is_the_one_asked_for_over_every_weight(
    model: LeNet5, train_params: TrainParamsOf, changes: dict[str, object], kind: type, expected: dict[str, float]
) -> None:
    optimizer = make_optimizer(model, train_params(**changes))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert expected.items() <= group.items()
    assert sum(weight.numel() for weight in group["params"]) == 61_706


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
