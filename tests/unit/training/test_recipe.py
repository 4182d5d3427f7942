from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import CutMix

from lenet5.network.lenet5 import LeNet5
from lenet5.params import AugmentationParams, ModelParams, TrainParams
from lenet5.training.recipe import (
    augment,
    draw_batch,
    draw_plan,
    learning_rates,
    loss_of_logits,
    make_optimizer,
    mix_labels,
)

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
    assert learning_rates(train_params(schedule=schedule, lr=0.1, epochs=1), steps, 1) == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


def test_constant_learning_rate(train_params: TrainParamsOf) -> None:
    assert learning_rates(train_params(lr=0.9), 4, 2) == [0.9] * 4


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@given(steps=st.integers(1, 40), epochs=st.integers(1, 5))
def test_every_step_has_a_learning_rate_that_never_exceeds_the_one_set(
    train_params: TrainParamsOf, schedule: str, steps: int, epochs: int
) -> None:
    params = train_params(schedule=schedule, lr=0.5, epochs=epochs)
    rates = [rate for epoch in range(1, epochs + 1) for rate in learning_rates(params, steps, epoch)]
    assert rates == learning_rates(params.model_copy(update={"epochs": 1}), steps * epochs, 1)
    assert len(rates) == steps * epochs
    assert all(0 < rate <= 0.5 for rate in rates)


def augment_by_hand(image: torch.Tensor, flip: bool, down: int, right: int, box: tuple[int, ...]) -> np.ndarray:
    pixels = np.fliplr(image.numpy()) if flip else image.numpy()
    moved = np.zeros_like(pixels)
    for row in range(28):
        for column in range(28):
            if 0 <= row - down < 28 and 0 <= column - right < 28:
                moved[row, column] = pixels[row - down, column - right]
    moved[box[0] : box[2], box[1] : box[3]] = 0
    return moved


SIDE = st.integers(0, 28)
MOVE = st.integers(-29, 29)


@given(st.lists(st.tuples(st.booleans(), MOVE, MOVE, st.tuples(SIDE, SIDE, SIDE, SIDE)), min_size=1, max_size=3))
def test_augmentation_mirrors_then_moves_then_erases_and_what_is_new_is_black(
    changes: list[tuple[bool, int, int, tuple[int, ...]]],
) -> None:
    images = torch.randint(1, 256, (len(changes), 28, 28), dtype=torch.uint8, generator=plan_generator())
    flips, downs, rights, boxes = (torch.tensor(column) for column in zip(*changes, strict=True))
    result = augment(images, flips, torch.stack([downs, rights], dim=1), boxes)
    assert result.dtype == torch.uint8
    for image, change, changed in zip(images, changes, result, strict=True):
        np.testing.assert_array_equal(changed.numpy(), augment_by_hand(image, *change))


@given(st.integers(1, 300), st.booleans(), st.integers(0, 14), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10))
def test_every_image_comes_once_an_epoch(
    size: int, flip: bool, shift: int, erasing: float, cutmix: float, seed: int
) -> None:
    augmentation = AugmentationParams(horizontal_flip=flip, shift=shift, erasing=erasing, cutmix=cutmix)
    plan = draw_plan(size, augmentation, plan_generator(seed))
    assert plan.order.sort().values.tolist() == list(range(size))
    assert plan.flips.shape == (size,)
    assert plan.shifts.shape == (size, 2)
    assert plan.shifts.abs().max() <= shift
    assert flip or not plan.flips.any()
    for corners, probability in ((plan.boxes, erasing), (plan.patches, cutmix)):
        assert corners.shape == (size, 4)
        assert corners.dtype == torch.uint8
        assert corners.min() >= 0
        assert corners.max() <= 28
        assert (corners[:, :2] <= corners[:, 2:]).all()
        assert probability or not corners.any()
    assert plan.partners.sort().values.tolist() == list(range(size))


def test_half_the_images_are_mirrored_and_all_shifts_occur() -> None:
    plan = draw_plan(2000, AugmentationParams(horizontal_flip=True, shift=2, erasing=0, cutmix=0), plan_generator())
    assert 900 < plan.flips.sum() < 1100
    for axis in plan.shifts.T:
        assert axis.unique().tolist() == [-2, -1, 0, 1, 2]


def test_boxes_are_those_that_torchvision_erases() -> None:
    plan = draw_plan(
        40_000, AugmentationParams(horizontal_flip=False, shift=0, erasing=0.5, cutmix=0), plan_generator()
    )
    corners, ends = plan.boxes.split(2, dim=1)
    erased = (ends > corners).all(1)
    assert 19_500 < erased.sum() < 20_500
    corners, heights, widths = corners[erased], *(ends - corners)[erased].T
    torch.manual_seed(0)
    by_torchvision = torch.tensor(
        [RandomErasing.get_params(torch.zeros(1, 28, 28), (0.02, 0.33), (0.3, 3.3), [0])[:4] for _ in range(20_000)]
    )
    for ours, theirs in zip((corners[:, 0], corners[:, 1], heights, widths), by_torchvision.T, strict=True):
        for share in torch.linspace(0, 1, 11):
            assert abs(ours.double().quantile(share.double()) - theirs.double().quantile(share.double())) <= 1
        assert abs(ours.double().mean() - theirs.double().mean()) < 0.3


def test_patches_are_those_that_torchvision_cuts() -> None:
    plan = draw_plan(
        40_000, AugmentationParams(horizontal_flip=False, shift=0, erasing=0, cutmix=0.5), plan_generator()
    )
    torch.manual_seed(0)
    cut = CutMix(num_classes=10)
    theirs = [cut.make_params([torch.zeros(1, 28, 28)]) for _ in range(20_000)]
    corners = torch.tensor([[top, left, bottom, right] for left, top, right, bottom in (one["box"] for one in theirs)])
    mixed = (plan.patches[:, 2:] > plan.patches[:, :2]).all(1)
    half = len(mixed) / 2 * (corners[:, 2:] > corners[:, :2]).all(1).double().mean()  # some patches are empty
    assert abs(mixed.sum() - half) < 500
    chosen = corners[(corners[:, 2:] > corners[:, :2]).all(1)]
    for ours, of_torchvision in zip(plan.patches[mixed].T, chosen.T, strict=True):
        for share in torch.linspace(0, 1, 11):
            assert abs(ours.double().quantile(share.double()) - of_torchvision.double().quantile(share.double())) <= 1
        assert abs(ours.double().mean() - of_torchvision.double().mean()) < 0.3


def test_a_mixed_image_has_anothers_patch_and_each_label_by_its_share_of_the_pixels() -> None:
    augmentation = AugmentationParams(horizontal_flip=True, shift=2, erasing=0.5, cutmix=1)
    images = torch.randint(1, 256, (50, 28, 28), dtype=torch.uint8, generator=plan_generator())
    labels = torch.arange(50) % 10
    plan = draw_plan(50, augmentation, plan_generator())
    batch, targets = draw_batch(images, augmentation, plan), mix_labels(labels[plan.order], labels, augmentation, plan)
    for n in range(50):
        top, left, bottom, right = plan.patches[n].tolist()
        mixed, share = images[plan.order[n]].clone(), (bottom - top) * (right - left) / 784
        mixed[top:bottom, left:right] = images[plan.partners[n], top:bottom, left:right]
        down, aside = plan.shifts[n].tolist()
        by_hand = augment_by_hand(mixed, bool(plan.flips[n]), down, aside, tuple(plan.boxes[n].tolist()))
        np.testing.assert_array_equal(batch[n].numpy(), by_hand)
        expected = [0.0] * 10
        expected[labels[plan.order[n]]] += 1 - share
        expected[labels[plan.partners[n]]] += share
        assert targets[n].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("replicas", [(), (3,)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("q", [0.0, 1e-9, 0.3, 1.0])
def test_the_generalised_cross_entropy_goes_from_cross_entropy_to_the_share_that_a_label_lacks(
    train_params: TrainParamsOf, q: float, smoothing: float, replicas: tuple[int, ...], mixed: bool,
    reduction: Literal["mean", "none"],
) -> None:  # fmt: skip
    generator = plan_generator()
    logits = 5 * torch.randn(20, 10, *replicas, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 10, (20, *replicas), generator=generator)
    wanted = F.one_hot(targets, 10).movedim(-1, 1).double()
    if mixed:
        wanted = targets = (wanted + 2 * wanted.flip(0)) / 3
    wanted = (1 - smoothing) * wanted + smoothing / 10
    shares = logits.softmax(1)
    by_definition = -(wanted * shares.log()).sum(1) if q < 1e-3 else (wanted * (1 - shares**q) / q).sum(1)
    loss = loss_of_logits(logits, targets, train_params(loss_q=q, label_smoothing=smoothing), reduction)
    torch.testing.assert_close(loss, by_definition.mean() if reduction == "mean" else by_definition)


@pytest.mark.parametrize(("change", "drawn"), [({"erasing": 1}, {"boxes"}), ({"cutmix": 1}, {"partners", "patches"})])
def test_a_change_leaves_everything_else_that_is_drawn_as_it_was(change: dict[str, float], drawn: set[str]) -> None:
    usual = AugmentationParams(horizontal_flip=True, shift=3, erasing=0, cutmix=0)
    plain, changed = (
        draw_plan(50, augmentation, plan_generator()) for augmentation in (usual, usual.model_copy(update=change))
    )
    assert {
        name for name, one, other in zip(plain._fields, plain, changed, strict=True) if not torch.equal(one, other)
    } == drawn


def test_the_seed_decides_the_plan_and_each_epoch_has_its_own() -> None:
    augmentation = AugmentationParams(horizontal_flip=True, shift=3, erasing=0.5, cutmix=0.5)
    generator = plan_generator(1)
    first, second = (draw_plan(50, augmentation, generator) for _ in range(2))
    again = draw_plan(50, augmentation, plan_generator(1))
    other = draw_plan(50, augmentation, plan_generator(2))
    for drawn, same, following, of_another in zip(first, again, second, other, strict=True):
        assert torch.equal(drawn, same)
        assert not torch.equal(drawn, following)
        assert not torch.equal(drawn, of_another)


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
    optimizer = make_optimizer(model.parameters(), train_params(**changes))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {name: float(group[name]) for name in expected} == pytest.approx(expected)
    assert sum(weight.numel() for weight in group["params"]) == 61_706


@pytest.mark.parametrize(
    ("changes", "usual"),
    [
        ({"momentum": 0.9, "weight_decay": 0.01}, partial(torch.optim.SGD, momentum=0.9)),
        ({"optimizer": "adamw", "weight_decay": 0.01}, torch.optim.AdamW),
    ],
)
def test_the_state_made_ahead_is_the_one_the_optimizer_starts_from(
    train_params: TrainParamsOf, changes: dict[str, object], usual: Callable[..., torch.optim.Optimizer]
) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 9)) for _ in range(2))
    optimizers = [make_optimizer([ours], train_params(**changes)), usual([theirs], lr=0.1, weight_decay=0.01)]
    assert torch.equal(ours, theirs)
    for step in range(3):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = torch.full_like(weight, 0.5 - step)
            optimizer.step()
        torch.testing.assert_close(ours, theirs)
