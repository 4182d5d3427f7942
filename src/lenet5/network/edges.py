"""What an edge detector is learned from, and how that went: for whoever looks at it, without PyTorch.

After A. Zhang et al., Dive into Deep Learning, section 7.2.
"""

from dataclasses import dataclass

import numpy as np

from lenet5.network.convolution import Array

EDGE_KERNEL = np.array([[1.0, -1.0]])
KERNELS = {"vertical_edges": EDGE_KERNEL, "horizontal_edges": EDGE_KERNEL.T}
"""By what they find; (1, 2) and (2, 1)."""


@dataclass(frozen=True)
class LearnedKernel:
    """One training: the kernel, its largest distance from the wanted one, and the loss before each step."""

    seed: int
    kernel: Array
    error: float
    losses: list[float]


def edge_image() -> Array:
    """The 6 x 8 image: white (1), with two black (0) rectangles in the middle, one white row between them."""
    image = np.ones((6, 8))
    image[:, 2:6] = 0
    image[2] = 1
    return image
