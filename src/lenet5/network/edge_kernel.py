"""Learning edge detectors from data: the smallest case of what training LeNet-5 does.

After A. Zhang et al., Dive into Deep Learning, section 7.2.
"""

import numpy as np
import torch
from torch import nn

from lenet5.network.convolution import Array, corr2d
from lenet5.network.edges import LearnedKernel, edge_image


def learn_kernel(wanted: Array, seed: int, lr: float, max_steps: int, tolerance: float) -> LearnedKernel:
    """Train a convolution on the edge image's response to ``wanted``, (1, 2) or (2, 1), until it is that kernel.

    Gradient descent on the squared error, summed over the response; it ends when all weights are within ``tolerance``
    of ``wanted``, or steps run out.
    """
    image = edge_image()
    x = torch.from_numpy(image)[None, None]
    target = torch.from_numpy(corr2d(image, wanted))[None, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = nn.Conv2d(1, 1, kernel_size=wanted.shape, bias=False, dtype=torch.float64)
    losses: list[float] = []
    while _error(conv, wanted) > tolerance and len(losses) < max_steps:
        loss = (conv(x) - target).square().sum()
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, conv.weight)
        with torch.no_grad():
            conv.weight -= lr * gradient
    return LearnedKernel(seed, conv.weight.detach().numpy()[0, 0], _error(conv, wanted), losses)


def _error(conv: nn.Conv2d, wanted: Array) -> float:
    return float(np.abs(conv.weight.detach().numpy()[0, 0] - wanted).max())
