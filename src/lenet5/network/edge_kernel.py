"""Learning an edge detector from data: the smallest case of what training LeNet-5 does.

After A. Zhang et al., Dive into Deep Learning, section 7.2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lenet5.convolution import Array, corr2d

EDGE_KERNEL = np.array([[1.0, -1.0]])


@dataclass(frozen=True)
class LearnedKernel:
    """One training: the kernel (1, 2), its largest distance from [1, -1], and the loss before each step."""

    seed: int
    kernel: Array
    error: float
    losses: list[float]


def edge_image() -> Array:
    """The 6 x 8 image: white (1), with the four columns in the middle black (0)."""
    image = np.ones((6, 8))
    image[:, 2:6] = 0
    return image


def learn_kernel(seed: int, lr: float, max_steps: int, tolerance: float) -> LearnedKernel:
    """Train ``Conv2d(1, 1, (1, 2))`` until its weights are within ``tolerance`` of [1, -1], or steps run out.

    Gradient descent on the squared error, summed over the image, against the response of the true kernel.
    """
    image = edge_image()
    x = torch.from_numpy(image)[None, None]
    target = torch.from_numpy(corr2d(image, EDGE_KERNEL))[None, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = nn.Conv2d(1, 1, kernel_size=(1, 2), bias=False, dtype=torch.float64)
    losses: list[float] = []
    while _error(conv) > tolerance and len(losses) < max_steps:
        loss = (conv(x) - target).square().sum()
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, conv.weight)
        with torch.no_grad():
            conv.weight -= lr * gradient
    return LearnedKernel(seed, conv.weight.detach().numpy()[0, 0], _error(conv), losses)


def _error(conv: nn.Conv2d) -> float:
    return float(np.abs(conv.weight.detach().numpy()[0, 0] - EDGE_KERNEL).max())
