"""What a step of training computes: the batch, its loss, the gradient, the optimizer, the learning rate.

Everything here works on tensors of one device and runs alike as it stands, compiled, or captured in a CUDA graph.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenet5.data.datasets import Split, to_float
from lenet5.data.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.params import AugmentationParams, TrainParams

ONECYCLE_WARMUP, ONECYCLE_START, ONECYCLE_END = (
    0.3,
    1 / 25,
    1 / 250_000,
)  # as torch.optim.lr_scheduler.OneCycleLR

ERASED_AREA, ERASED_SHAPE = (0.02, 0.33), (0.3, 3.3)  # as torchvision's RandomErasing

BatchLoss = Callable[..., tuple[Tensor, Tensor]]
"""A batch, the tensors of its ``EpochPlan`` one by one -> its mean loss and how many images it classifies rightly."""

Gradients = BatchLoss
"""The same, and the gradients of that loss are left in the weights' ``grad``."""


def learning_rates(params: TrainParams, steps: int, epoch: int) -> list[float]:
    """The learning rate of each of the ``steps`` of ``epoch``, which count from 1.

    onecycle: L. Smith, "Super-Convergence", 2018, with both halves annealed by cosine.
    """
    total = steps * params.epochs
    these = range((epoch - 1) * steps, epoch * steps)
    if params.schedule == "cosine":
        return [params.lr * _anneal(1, 0, step / total) for step in these]
    if params.schedule == "onecycle":
        return [params.lr * _one_cycle(step, total) for step in these]
    return [params.lr] * steps


def _one_cycle(step: int, total: int) -> float:
    peak, last = ONECYCLE_WARMUP * total - 1, total - 1
    if step <= peak:
        return _anneal(ONECYCLE_START, 1, step / peak)
    return _anneal(1, ONECYCLE_END, (step - peak) / (last - peak))


def make_optimizer(weights: Iterable[nn.Parameter], params: TrainParams) -> torch.optim.Optimizer:
    """The optimizer that ``params`` name, over all of ``weights``, its state there from the start.

    Its learning rate is a tensor beside the weights, as is the one that each step puts in its place.
    """
    weights = list(weights)
    device = weights[0].device
    optimizer: torch.optim.Optimizer
    if params.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            weights, lr=0, weight_decay=params.weight_decay, fused=True, capturable=device.type == "cuda"
        )
    else:
        optimizer = torch.optim.SGD(
            weights, lr=0, momentum=params.momentum, weight_decay=params.weight_decay, fused=True
        )
    _create_state(optimizer, weights)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(params.lr, device=device)
    return optimizer


class EpochPlan(NamedTuple):
    """Everything random about an epoch but dropout, drawn ahead so that every device sees the same.

    ``order`` (n,) int64; for the image at each place ``flips`` (n,) bool, ``shifts`` (n, 2) int64 pixels, ``boxes``
    (n, 4) uint8: the first row and column to erase, and the first that are not erased any more; ``patches`` the same
    of what is pasted, and ``partners`` (n,) int64 the image it comes from.
    """

    order: Tensor
    flips: Tensor
    shifts: Tensor
    boxes: Tensor
    partners: Tensor
    patches: Tensor


def draw_plan(size: int, augmentation: AugmentationParams, generator: torch.Generator) -> EpochPlan:
    """A fresh order of ``size`` images and a fresh change for each."""
    order = torch.randperm(size, generator=generator)
    if augmentation.horizontal_flip:
        flips = torch.rand(size, generator=generator) < 0.5
    else:
        flips = torch.zeros(size, dtype=torch.bool)
    reach = augmentation.shift
    shifts = torch.randint(-reach, reach + 1, (size, 2), generator=generator)
    boxes = _draw_boxes(size, augmentation.erasing, generator)
    return EpochPlan(order, flips, shifts, boxes, *_draw_patches(order, augmentation.cutmix, generator))


def _draw_boxes(size: int, probability: float, generator: torch.Generator) -> Tensor:
    """(size, 4) uint8; of an image that is left whole an empty box.

    Z. Zhong et al., "Random Erasing Data Augmentation", 2017, algorithm 1. A box that is too long is cut to the image,
    where they draw again.
    """
    if not probability:
        return torch.zeros(size, 4, dtype=torch.uint8)
    chosen, area, shape, *place = torch.rand(5, size, generator=generator)
    area = IMAGE_SIZE**2 * _between(ERASED_AREA, area)
    shape = _between((math.log(ERASED_SHAPE[0]), math.log(ERASED_SHAPE[1])), shape).exp()
    sides = torch.stack([area * shape, area / shape], 1).sqrt().round().clamp(max=IMAGE_SIZE)
    corners = (torch.stack(place, 1) * (IMAGE_SIZE + 1 - sides)).floor()
    boxes = torch.cat([corners, corners + sides], 1).byte()
    return torch.where((chosen < probability)[:, None], boxes, 0)


def _draw_patches(order: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Partners and patches of an ``EpochPlan``; an image that is left whole has an empty patch.

    S. Yun et al., "CutMix", 2019, section 3.1, with lambda uniform. Each image has a patch of its own, from any other
    of the epoch, where they draw one for a whole batch.
    """
    size = len(order)
    if not probability:
        return order, torch.zeros(size, 4, dtype=torch.uint8)
    partners = torch.randperm(size, generator=generator)
    chosen, share, *place = torch.rand(4, size, generator=generator)
    centers = (torch.stack(place, 1) * IMAGE_SIZE).floor()
    half = (IMAGE_SIZE / 2 * share.sqrt()).floor()[:, None]
    patches = torch.cat([centers - half, centers + half], 1).clamp(0, IMAGE_SIZE).byte()
    return partners, torch.where((chosen < probability)[:, None], patches, 0)


def _between(bounds: tuple[float, float], share: Tensor) -> Tensor:
    return share * (bounds[1] - bounds[0]) + bounds[0]


def augment(images: Tensor, flips: Tensor, shifts: Tensor, boxes: Tensor) -> Tensor:
    """Mirror each of ``images`` (B, 28, 28), move it down and right by ``shifts``, and erase what is in its box.

    What moves in, and what is erased, is black.
    """
    pixels = _pixels(images)
    rows = pixels - shifts[:, :1]
    columns = pixels - shifts[:, 1:]
    columns = torch.where(flips[:, None], IMAGE_SIZE - 1 - columns, columns)
    kept = _both(_within(rows, 0, IMAGE_SIZE), _within(columns, 0, IMAGE_SIZE))
    kept &= ~_inside(boxes, pixels)
    rows, columns = rows.clamp(0, IMAGE_SIZE - 1), columns.clamp(0, IMAGE_SIZE - 1)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images[image, rows[:, :, None], columns[:, None, :]] * kept


def batch_loss(
    model: Callable[[Tensor], Tensor], data: Split, params: TrainParams, *batch: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss of ``model`` on a batch, the tensors of its ``EpochPlan``, and how many images it gets right."""
    plan = EpochPlan(*batch)
    images = draw_batch(data.images, params.augmentation, plan)
    labels = data.labels[plan.order]
    targets = mix_labels(labels, data.labels, params.augmentation, plan)
    # The cache of converted weights would outlive a captured step.
    with torch.autocast(labels.device.type, torch.bfloat16, params.precision == "bf16", cache_enabled=False):
        logits = model(to_float(images))
        loss = loss_of_logits(logits, targets, params, "mean")
    return loss, (logits.detach().argmax(1) == labels).sum()


def draw_batch(images: Tensor, augmentation: AugmentationParams, plan: EpochPlan) -> Tensor:
    """The (B, 28, 28) uint8 images of ``plan``, mixed and augmented when asked."""
    batch = images[plan.order]
    if augmentation.cutmix:
        batch = torch.where(_inside(plan.patches, _pixels(batch)), images[plan.partners], batch)
    return augment(batch, plan.flips, plan.shifts, plan.boxes) if augmentation.changes() else batch


def mix_labels(own: Tensor, labels: Tensor, augmentation: AugmentationParams, plan: EpochPlan) -> Tensor:
    """The (B,) labels that images of ``plan`` have of their ``own``, or mixed with those of their partners.

    Then (B, 10), each label by its share of the pixels. With a plan of N replicas (B, N) and (B, 10, N).
    """
    if not augmentation.cutmix:
        return own
    top, left, bottom, right = plan.patches.int().movedim(-1, 0)
    share = ((bottom - top) * (right - left) / IMAGE_SIZE**2)[:, None]
    classes = torch.arange(len(CLASSES), device=labels.device).view(-1, *[1] * (own.dim() - 1))
    mixed: Tensor = (1 - share) * (own[:, None] == classes) + share * (labels[plan.partners][:, None] == classes)
    return mixed


def loss_of_logits(logits: Tensor, targets: Tensor, params: TrainParams, reduction: Literal["mean", "none"]) -> Tensor:
    """What training minimises; logits (B, 10, ...) and labels, or shares of them, as ``F.cross_entropy`` takes both.

    With a q it is Z. Zhang and M. Sabuncu, "Generalized Cross Entropy Loss", 2018, equation 6.
    """
    q, smoothing = params.loss_q, params.label_smoothing
    if not q:
        return F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)
    gains = torch.expm1(q * F.log_softmax(logits, 1)) / q
    own = -(targets * gains).sum(1) if targets.is_floating_point() else F.nll_loss(gains, targets, reduction="none")
    losses = (1 - smoothing) * own - smoothing * gains.mean(1)
    return losses.mean() if reduction == "mean" else losses


def autograd(loss_of: BatchLoss, optimizer: torch.optim.Optimizer, *batch: Tensor) -> tuple[Tensor, Tensor]:
    """``loss_of`` a batch, and back through what computed it: ``Gradients`` by PyTorch's own means."""
    optimizer.zero_grad(set_to_none=True)
    losses, correct = loss_of(*batch)
    losses.backward(torch.ones_like(losses))
    return losses.detach(), correct


def train_step(
    gradients_of: Gradients, optimizer: torch.optim.Optimizer, batch: Iterable[Tensor], rate: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of gradient descent at learning rate ``rate`` (); the batch's loss and hits, left on the device.

    The optimizer reads ``rate`` where it lies, so that a captured step takes what is there when it is replayed.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses, correct = gradients_of(*batch)
    optimizer.step()
    return losses, correct


def _create_state(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> None:
    """Give ``optimizer`` the zeros it starts from, as tensors that a captured step can point at."""
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # its learning rate is still zero: this moves nothing
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def _anneal(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _pixels(images: Tensor) -> Tensor:
    return torch.arange(IMAGE_SIZE, device=images.device)


def _inside(boxes: Tensor, pixels: Tensor) -> Tensor:
    top, left, bottom, right = boxes.T[:, :, None]
    return _both(_within(pixels, top, bottom), _within(pixels, left, right))


def _within(pixels: Tensor, first: Tensor | int, end: Tensor | int) -> Tensor:
    return (pixels >= first) & (pixels < end)


def _both(rows: Tensor, columns: Tensor) -> Tensor:
    return rows[:, :, None] & columns[:, None, :]
