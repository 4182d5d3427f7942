"""How one epoch runs. No files, no tracking, no decisions."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lenet5.datasets import Split
from lenet5.errors import UserError
from lenet5.fashion_mnist import IMAGE_SIZE
from lenet5.model import LeNet5
from lenet5.params import AugmentationParams, TrainParams

ONECYCLE_WARMUP, ONECYCLE_START, ONECYCLE_END = (
    0.3,
    1 / 25,
    1 / 250_000,
)  # as torch.optim.lr_scheduler.OneCycleLR


def pick_device(name: str) -> torch.device:
    """The device for ``train.device``; ``auto`` takes a GPU when there is one. Raises UserError for a missing one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device: cuda, but PyTorch finds no CUDA device here; set it to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def set_deterministic(deterministic: bool) -> None:
    """Refuse, or allow, operations whose result may differ between two runs on one device."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def to_float(images: Tensor) -> Tensor:
    """(B, 28, 28) uint8 -> (B, 1, 28, 28) float32 in [0, 1], what torchvision's ToTensor computes."""
    return images.unsqueeze(1).float() / 255


def learning_rates(params: TrainParams, steps: int) -> list[float]:
    """The learning rate of every step of training.

    onecycle: L. Smith, "Super-Convergence", 2018, with both halves annealed by cosine.
    """
    if params.schedule == "cosine":
        return [params.lr * _anneal(1, 0, step / steps) for step in range(steps)]
    if params.schedule == "onecycle":
        peak, last = ONECYCLE_WARMUP * steps - 1, steps - 1
        up = [_anneal(ONECYCLE_START, 1, step / peak) for step in range(steps) if step <= peak]
        down = [_anneal(1, ONECYCLE_END, (step - peak) / (last - peak)) for step in range(len(up), steps)]
        return [params.lr * factor for factor in up + down]
    return [params.lr] * steps


def make_optimizer(model: LeNet5, params: TrainParams) -> torch.optim.Optimizer:
    """The optimizer that ``params`` name, over all of ``model``."""
    if params.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=params.lr, weight_decay=params.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay)


@dataclass(frozen=True)
class EpochPlan:
    """Everything random about an epoch but dropout, drawn ahead so that every device sees the same.

    ``order`` (n,) int64; ``flips`` (n,) bool and ``shifts`` (n, 2) int64 pixels for the image at each place.
    """

    order: Tensor
    flips: Tensor
    shifts: Tensor


def draw_plan(size: int, augmentation: AugmentationParams, generator: torch.Generator) -> EpochPlan:
    """A fresh order of ``size`` images and a fresh change for each."""
    order = torch.randperm(size, generator=generator)
    if augmentation.horizontal_flip:
        flips = torch.rand(size, generator=generator) < 0.5
    else:
        flips = torch.zeros(size, dtype=torch.bool)
    reach = augmentation.shift
    return EpochPlan(order, flips, torch.randint(-reach, reach + 1, (size, 2), generator=generator))


def augment(images: Tensor, flips: Tensor, shifts: Tensor) -> Tensor:
    """Mirror, then move down and right by ``shifts``, each of ``images`` (B, 28, 28); what moves in is black."""
    pixels = torch.arange(IMAGE_SIZE, device=images.device)
    rows = pixels - shifts[:, :1]
    columns = pixels - shifts[:, 1:]
    columns = torch.where(flips[:, None], IMAGE_SIZE - 1 - columns, columns)
    inside = _inside(rows)[:, :, None] & _inside(columns)[:, None, :]
    rows, columns = rows.clamp(0, IMAGE_SIZE - 1), columns.clamp(0, IMAGE_SIZE - 1)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images[image, rows[:, :, None], columns[:, None, :]] * inside


def train_step(
    model: LeNet5, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """One step of gradient descent; the batch's mean loss and how many it got right, left on the device."""
    optimizer.zero_grad(set_to_none=True)
    logits = model(to_float(images))
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    loss.backward()
    optimizer.step()
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


@dataclass(frozen=True)
class EpochResult:
    """Running figures of one epoch, taken while the weights moved; ``losses`` (steps,) is each step's mean loss."""

    losses: Tensor
    mean_loss: float
    accuracy: float


def train_epoch(
    model: LeNet5,
    optimizer: torch.optim.Optimizer,
    data: Split,
    plan: EpochPlan,
    rates: Sequence[float],
    params: TrainParams,
) -> EpochResult:
    """Train on every image of ``data`` once, in the plan's order, with one learning rate a step."""
    model.train()
    augmented = params.augmentation.horizontal_flip or params.augmentation.shift
    parts = zip(
        rates,
        plan.order.to(data.labels.device).split(params.batch_size),
        plan.flips.to(data.labels.device).split(params.batch_size),
        plan.shifts.to(data.labels.device).split(params.batch_size),
        strict=True,
    )
    results = []
    for rate, order, flips, shifts in parts:
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = data.images[order]
        if augmented:
            images = augment(images, flips, shifts)
        results.append(train_step(model, optimizer, images, data.labels[order], params.label_smoothing))
    # Read from the device once: waiting after every step would leave a GPU idle.
    losses, correct = (torch.stack(column).cpu() for column in zip(*results, strict=True))
    sizes = torch.tensor([len(order) for order in plan.order.split(params.batch_size)])
    mean_loss = (losses.double() * sizes).sum().item() / len(data)
    return EpochResult(losses, mean_loss, correct.sum().item() / len(data))


def _anneal(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _inside(pixels: Tensor) -> Tensor:
    return (pixels >= 0) & (pixels < IMAGE_SIZE)
