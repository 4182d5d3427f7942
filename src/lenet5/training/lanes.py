"""LeNet-5 laid out for a CPU: as many images side by side as a vector register has lanes.

PyTorch's convolutions put the maps of a layer into the lanes, and where LeNet-5 has 1 or 6 of them, most lanes idle.
Here each lane holds an image: maps are (blocks, maps, height, width, lanes), the last block filled up with black ones.
The convolutions are those of lanes.cpp; all else is PyTorch's.
"""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lenet5.compiler import build, compiler_name
from lenet5.convolution import output_size
from lenet5.model import C1_PADDING, LeNet5

SOURCE = Path(__file__).with_suffix(".cpp")


def buildable() -> bool:
    """Whether lanes.cpp is tried here: on Linux with a C++ compiler. Elsewhere OpenMP is another matter."""
    return sys.platform == "linux" and shutil.which(compiler_name()) is not None


@cache
def library() -> ctypes.CDLL | None:
    """What lanes.cpp compiles to, or None where it is not tried; where the compiler fails, None and a line about it."""
    if not buildable():
        return None
    try:
        return build(SOURCE)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
        print(f"PyTorch's convolutions, for {compiler_name()} failed: {said[0] if said else error}", file=sys.stderr)
        return None


def laid_out(model: LeNet5) -> Callable[[Tensor], Tensor]:
    """What ``model`` computes, with its gradients: (B, 1, 28, 28) float32 -> (B, 10) logits. Wants ``library()``."""
    return partial(forward, model, _built().lanes())


def forward(model: LeNet5, lanes: int, images: Tensor) -> Tensor:
    """Logits (B, 10), through convolutions of ``lanes`` images at once."""
    blocks = -(-len(images) // lanes)
    x = F.pad(images, (C1_PADDING,) * 4 + (0, 0, 0, blocks * lanes - len(images)))
    x = x.unflatten(0, (blocks, lanes)).permute(0, 2, 3, 4, 1).contiguous()
    x = activate(model.activation, model.s2, correlate(x, model.c1.weight, model.c1.bias))  # type: ignore[arg-type]
    x = activate(model.activation, model.s4, correlate(x, model.c3_kernels(), model.c3.bias))  # type: ignore[arg-type]
    # A column an image, transposed: so its gradient comes with the lanes side by side again.
    logits: Tensor = model.classify(x.permute(1, 2, 3, 0, 4).flatten(3).flatten(0, 2).T)
    return logits[: len(images)]


def activate(activation: nn.Module, pooling: nn.AvgPool2d | nn.MaxPool2d, x: Tensor) -> Tensor:
    """Activation and pooling of every lane: (blocks, maps, H, W, lanes) -> (blocks, maps, H / 2, W / 2, lanes)."""
    if not (torch.compiler.is_compiling() and isinstance(activation, nn.ReLU)):
        return pool(pooling, activation(x))
    # Compiled code takes long to store where a ReLU was zero; found again from its input, that costs next to nothing.
    result: Tensor = checkpoint(lambda maps: pool(pooling, activation(maps)), x, use_reentrant=False)
    return result


def pool(layer: nn.AvgPool2d | nn.MaxPool2d, x: Tensor) -> Tensor:
    """Pooling over 2 x 2 pixels of every lane; shapes as in ``activate``."""
    if isinstance(layer, nn.MaxPool2d) and torch.compiler.is_compiling():
        # Of this torch.compile makes a gradient several times as fast.
        rows = x.unflatten(2, (-1, 2))
        pairs = torch.maximum(rows[:, :, :, 0], rows[:, :, :, 1]).unflatten(3, (-1, 2))
        return torch.maximum(pairs[:, :, :, :, 0], pairs[:, :, :, :, 1])
    lanes_as_channels = x.flatten(0, 1).permute(0, 3, 1, 2)
    pooled: Tensor = layer(lanes_as_channels).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return pooled


def correlate(maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """C1's or C3's cross-correlation: (blocks, in, H, W, lanes), (out, in, 5, 5) -> (blocks, out, H-4, W-4, lanes)."""
    result: Tensor = _Correlation.apply(maps, kernels, bias)
    return result


class _Correlation(torch.autograd.Function):
    # Not register_autograd: torch.compile's cache on disk would not see a change of the gradient.
    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(maps, kernels)
        result: Tensor = convolve(maps, kernels, bias)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        maps, kernels = ctx.saved_tensors
        by_kernels, by_bias = kernel_gradient(gradient, maps)
        by_maps = input_gradient(gradient, kernels) if ctx.needs_input_grad[0] else None
        return by_maps, by_kernels.sum(0), by_bias.sum(0)


@torch.library.custom_op("lenet5::convolve", mutates_args=())
def convolve(maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """``correlate`` without its gradients."""
    result: Tensor = _convolved(maps, kernels, bias)
    _call(maps.shape[1], "forward", maps.contiguous(), kernels.contiguous(), bias.contiguous(), result)
    return result


@torch.library.custom_op("lenet5::input_gradient", mutates_args=())
def input_gradient(gradient: Tensor, kernels: Tensor) -> Tensor:
    """The gradient of C3 by its input; C1's input, the images, needs none."""
    result: Tensor = _input_like(gradient, kernels)
    _call(kernels.shape[1], "input_gradient", gradient.contiguous(), kernels.contiguous(), result)
    return result


@torch.library.custom_op("lenet5::kernel_gradient", mutates_args=())
def kernel_gradient(gradient: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by kernels and bias, of each block by itself: (blocks, out, in, 5, 5) and (blocks, out)."""
    kernels, bias = _block_sums(gradient, maps)
    _call(maps.shape[1], "kernel_gradient", gradient.contiguous(), maps.contiguous(), kernels, bias)
    return kernels, bias


@convolve.register_fake
def _convolved(maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    blocks, _, height, width, lanes = maps.shape
    return maps.new_empty(blocks, len(bias), *(output_size(size, kernels.shape[-1]) for size in (height, width)), lanes)


@input_gradient.register_fake
def _input_like(gradient: Tensor, kernels: Tensor) -> Tensor:
    blocks, _, height, width, lanes = gradient.shape
    more = kernels.shape[-1] - 1
    return gradient.new_empty(blocks, kernels.shape[1], height + more, width + more, lanes)


@kernel_gradient.register_fake
def _block_sums(gradient: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    blocks, out = gradient.shape[:2]
    kernel = output_size(maps.shape[2], gradient.shape[2])
    return gradient.new_empty(blocks, out, maps.shape[1], kernel, kernel), gradient.new_empty(blocks, out)


def _call(maps: int, name: str, *tensors: Tensor) -> None:
    """Call ``name`` of the layer that sees so many ``maps``; the first of ``tensors`` says how many blocks."""
    if any(tensor.dtype != torch.float32 for tensor in tensors) or tensors[0].shape[-1] != _built().lanes():
        raise TypeError(f"float32 and {_built().lanes()} lanes are wanted, not {tensors[0].dtype} {tensors[0].shape}")
    function = getattr(_built(), f"{'c1' if maps == 1 else 'c3'}_{name}")
    function(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), len(tensors[0]))


def _built() -> ctypes.CDLL:
    built = library()
    if built is None:
        raise RuntimeError("lanes.cpp cannot be built here")
    return built
