"""LeNet-5's training step laid out for a CPU: as many images side by side as a vector register has lanes.

PyTorch's convolutions put the maps of a layer into the lanes, and where LeNet-5 has 1 or 6 of them, most lanes idle;
and each operation of a step passes the maps of a whole batch through memory. In kernels/lanes.cpp each lane holds an
image, and a block of images goes through the whole network and back while a core's cache holds its maps.
"""

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lenet5.data.datasets import Split, Splits
from lenet5.network.lenet5 import LeNet5, TableConv2d
from lenet5.params import ModelParams, TrainParams
from lenet5.training.compiler import BuildError, build, compiler_name
from lenet5.workspace import LIBRARIES, main_workspace

SOURCE = Path(__file__).parent / "kernels/lanes.cpp"


class UnavailableError(Exception):
    """Why a training cannot be laid out in lanes here."""


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("pixels", "labels", "order", "flips", "shifts", "factors")),
        ("count", ctypes.c_int64),
    )


def library(params: ModelParams) -> ctypes.CDLL:
    """kernels/lanes.cpp compiled for ``params``. Raises UnavailableError."""
    if sys.platform != "linux":
        raise UnavailableError("it is for Linux")  # elsewhere OpenMP is another matter
    try:
        built = build(
            SOURCE, {"ACTIVATION": params.activation, "POOLING": params.pooling}, main_workspace() / LIBRARIES
        )
    except BuildError as error:
        raise UnavailableError(f"the C++ compiler {compiler_name()} {error}") from None
    for size in (built.network_bytes, built.block_bytes, built.image_bytes):
        size.restype = ctypes.c_int64
    return built


class Lanes:
    """The gradients of one model's loss on batches of ``splits.train``, and its loss and hits on what is measured.

    ``model``, its weights contiguous, and ``splits`` are on the CPU; weights may change in place, and are not replaced.
    """

    def __init__(self, built: ctypes.CDLL, model: LeNet5, splits: Splits, params: TrainParams, threads: int) -> None:
        self._library, self._model, self._splits, self._params, self._threads = built, model, splits, params, threads
        if not all(weight.is_contiguous() and weight.dtype == torch.float32 for weight in model.parameters()):
            raise TypeError("contiguous float32 weights are wanted")
        self._table = model.c3 if isinstance(model.c3, TableConv2d) else None
        self._kernels = model.c3_kernels().detach()  # a copy where only some connections exist
        dense = [self._kernels if weight is model.c3.weight else weight for weight in model.parameters()]
        self._gradients = [torch.zeros_like(weight) for weight in dense]
        for weight, gradient in zip(model.parameters(), self._gradients, strict=True):
            weight.grad = gradient if weight.shape == gradient.shape else None
        self._weight_pointers, self._gradient_pointers = _pointers(dense), _pointers(self._gradients)
        self._networks = _memory(threads * built.network_bytes())
        self._kept = _memory(self._blocks(params.batch_size) * built.block_bytes())
        self._images = _memory(params.batch_size * built.image_bytes())

    def gradients(self, order: Tensor, flips: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and hits of a batch, () float64 each; leaves the gradients of the loss in ``grad``.

        ``order`` (B,) int64, ``flips`` (B,) bool, ``shifts`` (B, 2) int64.
        """
        changed = self._params.augmentation.horizontal_flip or self._params.augmentation.shift
        data = [order, flips if changed else None, shifts if changed else None, self._dropout(len(order))]
        sums = self._call(
            "step", self._splits.train, data, len(order),
            ctypes.c_float(self._params.label_smoothing),
            *map(_pointer, (self._kept, self._images)), self._gradient_pointers,
        )  # fmt: skip
        if self._table:
            self._table.weight.grad = self._gradients[2].flatten(0, 1)[self._table.rows]
        return sums[0] / len(order), sums[1]

    def counts(self) -> Tensor:
        """Mean loss and hits of the weights as they stand on each split that is measured, (splits, 2) float64."""
        return torch.stack([self._count(split) for split in self._splits.measured().values()])

    def _count(self, split: Split) -> Tensor:
        loss, correct = self._call("measure", split, [None] * 4, len(split))
        return torch.stack([loss / len(split), correct])

    def _call(self, name: str, data: Split, arguments: Sequence[Tensor | None], count: int, *more: object) -> Tensor:
        """The sums of ``name`` over the blocks, (2,) float64."""
        if self._table:
            self._kernels.flatten(0, 1)[self._table.rows] = self._table.weight.detach()
        tensors = [data.images, data.labels, *arguments]
        batch = _Batch(*(None if tensor is None else tensor.data_ptr() for tensor in tensors), count)
        sums = torch.empty(self._blocks(count), 2, dtype=torch.float64)
        function = getattr(self._library, name)
        places = map(_pointer, (self._networks, sums))
        function(self._weight_pointers, ctypes.byref(batch), self._threads, *places, *more)
        return sums.sum(0)

    def _dropout(self, count: int) -> Tensor | None:
        """What each output of C5 and F6 is multiplied by, (B, 204): the numbers that nn.Dropout would draw."""
        kept = 1 - self._model.dropout.p
        if kept == 1:
            return None
        layers = (self._model.c5, self._model.f6)
        return torch.cat([torch.empty(count, layer.out_features).bernoulli_(kept) / kept for layer in layers], 1)

    def _blocks(self, count: int) -> int:
        return -(-count // int(self._library.lanes()))


def _memory(size: int) -> Tensor:
    """``size`` bytes, all zero, that begin where a vector may (PyTorch's memory does)."""
    return torch.zeros(size, dtype=torch.uint8)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
