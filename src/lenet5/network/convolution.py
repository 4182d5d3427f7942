"""What convolution and pooling compute, in NumPy, and the arithmetic of their sizes.

A reference to read and to check against: PyTorch does the training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def output_size(width: int, kernel: int, padding: int = 0, stride: int = 1) -> int:
    """N = (W - K + 2P)/S + 1 in pixels, rounded down. Raises ValueError where the kernel does not fit."""
    if kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(f"kernel {kernel} and stride {stride} must be at least 1, padding {padding} at least 0")
    if kernel > width + 2 * padding:
        raise ValueError(f"a kernel of {kernel} does not fit into {width} pixels with padding {padding}")
    return (width - kernel + 2 * padding) // stride + 1


def receptive_field(layers: Sequence[tuple[int, int]]) -> int:
    """Width in input pixels that one output of a stack of ``(kernel, stride)`` layers sees.

    Each layer widens the field by (K - 1) steps, and every stride before it makes those steps longer: that is
    why pooling lets a small kernel see far.
    """
    field, step = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * step
        step *= stride
    return field


def corr2d(image: Array, kernel: Array, padding: int = 0, stride: int = 1) -> Array:
    """Cross-correlation of ``image`` (H, W) with ``kernel`` (h, w): what deep learning calls convolution.

    Returns (N_h, N_w) after ``output_size``. Raises ValueError where the kernel does not fit.
    """
    windows = _windows(np.pad(image, padding), kernel.shape, stride)
    response: Array = np.einsum("ijhw,hw->ij", windows, kernel)
    return response


def convolve2d(image: Array, kernel: Array, padding: int = 0, stride: int = 1) -> Array:
    """Convolution proper: cross-correlation with the kernel flipped both ways. Shapes as in ``corr2d``."""
    return corr2d(image, kernel[::-1, ::-1], padding, stride)


def pool2d(image: Array, size: int, stride: int, reduce: Callable[..., Array]) -> Array:
    """Pool ``image`` (H, W) over ``size`` x ``size`` windows with ``reduce``: ``np.max`` or ``np.mean``."""
    return reduce(_windows(image, (size, size), stride), axis=(2, 3))


def _windows(image: Array, shape: tuple[int, ...], stride: int) -> Array:
    """A view (N_h, N_w, h, w) of every window of ``shape``, ``stride`` apart."""
    for width, kernel in zip(image.shape, shape, strict=True):
        output_size(width, kernel, stride=stride)  # its message is better than NumPy's
    windows: Array = sliding_window_view(image, shape)[::stride, ::stride]
    return windows
