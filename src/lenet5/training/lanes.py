"""LeNet-5's training step laid out for a CPU: as many images side by side as a vector register has lanes.

PyTorch's convolutions put the maps of a layer into the lanes, and where LeNet-5 has 1 or 6 of them, most lanes idle;
and each operation of a step passes the maps of a whole batch through memory. In kernels/lanes.cpp each lane holds an
image, and a block of images goes through the whole network and back while a core's cache holds its maps.
"""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenet5.data.datasets import Split, Splits
from lenet5.network.lenet5 import LeNet5, TableConv2d
from lenet5.params import ModelParams, TrainParams
from lenet5.training.compiler import BuildError, build, compiler_command
from lenet5.workspace import LIBRARIES, main_workspace

SOURCE = Path(__file__).parent / "kernels/lanes.cpp"
TRIAL = "numbers = (ctypes.c_float * 16)(); library.activation(numbers, numbers, ctypes.c_int64(16))"


class UnavailableError(Exception):
    """Why a training cannot be laid out in lanes here."""


BATCH = ("pixels", "labels", "order", "flips", "shifts", "boxes", "partners", "patches", "factors")


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in BATCH),
        ("count", ctypes.c_int64),
    )


class _Loss(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_float) for name in ("smoothing", "q"))


class _Optimizer(ctypes.Structure):
    _fields_ = (
        ("rates", ctypes.c_void_p),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("first", "second")),
        *((name, ctypes.c_float) for name in ("decay", "momentum")),
        ("taken", ctypes.c_int64),
    )


def library(params: ModelParams) -> ctypes.CDLL:
    """kernels/lanes.cpp compiled for ``params``. Raises UnavailableError."""
    if sys.platform != "linux":
        raise UnavailableError("it is for Linux")  # elsewhere OpenMP is another matter
    compiler = compiler_command()
    try:
        return _built(tuple(compiler), params.activation, params.pooling, main_workspace() / LIBRARIES)
    except BuildError as error:
        raise UnavailableError(f"the C++ compiler {compiler[0]} {error}") from None


@cache
def _built(compiler: tuple[str, ...], activation: str, pooling: str, folder: Path) -> ctypes.CDLL:
    """Once a process: as with its Python, what somebody changes while it trains is for the next one."""
    built = build(compiler, SOURCE, {"ACTIVATION": activation, "POOLING": pooling}, folder, TRIAL)
    for size in (built.network_bytes, built.block_bytes, built.image_bytes):
        size.restype = ctypes.c_int64
    return built


class Lanes:
    """Training of one model on ``splits.train`` by ``params``' optimizer, and its measures on what is measured.

    ``model``, its weights contiguous, and ``splits`` are on the CPU; weights may change in place, and are not replaced.
    """

    def __init__(self, built: ctypes.CDLL, model: LeNet5, splits: Splits, params: TrainParams, threads: int) -> None:
        self._library, self._model, self._splits, self._params, self._threads = built, model, splits, params, threads
        if not all(weight.is_contiguous() and weight.dtype == torch.float32 for weight in model.parameters()):
            raise TypeError("contiguous float32 weights are wanted")
        self._table = model.c3 if isinstance(model.c3, TableConv2d) else None
        self._places = self._table.rows if self._table else torch.arange(model.c3.weight.shape[:2].numel())
        self._kernels = model.c3_kernels().detach()  # a copy where only some connections exist
        self._dense = [self._kernels if weight is model.c3.weight else weight for weight in model.parameters()]
        self._gradients = [torch.zeros_like(weight) for weight in self._dense]
        keeps = 2 if params.optimizer == "adamw" else int(params.momentum > 0)
        self._moments = [[torch.zeros_like(weight) for weight in model.parameters()] for _ in range(keeps)]
        self._taken = 0
        self._networks = _memory(threads * built.network_bytes())
        self._kept = _memory(self._blocks(params.batch_size) * built.block_bytes())
        self._images = _memory(params.batch_size * built.image_bytes())

    def steps(self, *launch: Tensor) -> Tensor:
        """Train along ``launch``: n images of an ``EpochPlan``, its tensors one by one, and each step's learning rate.

        A step's mean loss and hits, (2, steps) float64.
        """
        order, *plan, rates = launch
        size = self._params.batch_size
        batches = order.split(size)
        changes = plan if self._params.augmentation.changes() else [None] * len(plan)
        data = [order, *changes, self._dropout(batches)]
        sums = torch.zeros(len(batches), self._blocks(size), 2, dtype=torch.float64)
        self._call(
            "train", self._splits.train, data, len(order), sums,
            ctypes.c_int64(size), ctypes.byref(_Loss(self._params.label_smoothing, self._params.loss_q)),
            *map(_pointer, (self._kept, self._images)), _pointers(self._gradients),
            *map(_pointer, (self._model.c3.weight, self._places)), ctypes.c_int64(len(self._places)),
            ctypes.byref(self._optimizer(rates)),
        )  # fmt: skip
        self._taken += len(rates)
        losses, correct = sums.sum(1).T
        return torch.stack([losses / torch.tensor([len(batch) for batch in batches]), correct])

    def gradients(self) -> list[Tensor]:
        """Of the last step, by each of the model's parameters."""
        kernels = self._gradients[2].flatten(0, 1)[self._places].view_as(self._model.c3.weight)
        return [*self._gradients[:2], kernels, *self._gradients[3:]]

    def counts(self) -> Tensor:
        """Mean loss and hits of the weights as they stand on each split that is measured, (splits, 2) float64."""
        return torch.stack([self._count(split) for split in self._splits.measured().values()])

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer keeps from step to step."""
        return {"moments": self._moments, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self._moments, self._taken = state["moments"], state["taken"]

    def _count(self, split: Split) -> Tensor:
        sums = torch.empty(self._blocks(len(split)), 2, dtype=torch.float64)
        self._call("measure", split, [None] * (len(BATCH) - 2), len(split), sums)
        loss, correct = sums.sum(0)
        return torch.stack([loss / len(split), correct])

    def _call(
        self, name: str, data: Split, arguments: Sequence[Tensor | None], count: int, sums: Tensor, *more: object
    ) -> None:
        if self._table:
            self._kernels.flatten(0, 1)[self._places] = self._table.weight.detach()
        tensors = [data.images, data.labels, *arguments]
        batch = _Batch(*(None if tensor is None else tensor.data_ptr() for tensor in tensors), count)
        function = getattr(self._library, name)
        places = map(_pointer, (self._networks, sums))
        function(_pointers(self._dense), ctypes.byref(batch), self._threads, *places, *more)

    def _optimizer(self, rates: Tensor) -> _Optimizer:
        first, second, *_ = [*map(_pointers, self._moments), None, None]
        params = self._params
        return _Optimizer(_pointer(rates), first, second, params.weight_decay, params.momentum, self._taken)

    def _dropout(self, batches: Sequence[Tensor]) -> Tensor | None:
        """What each output of C5 and F6 is multiplied by, (n, 204): the numbers that nn.Dropout would draw."""
        kept = 1 - self._model.dropout.p
        if kept == 1:
            return None
        sizes = [layer.out_features for layer in (self._model.c5, self._model.f6)]
        drawn = [[torch.empty(len(batch), size).bernoulli_(kept) for size in sizes] for batch in batches]
        return torch.cat([torch.cat(layers, 1) for layers in drawn]) / kept

    def _blocks(self, count: int) -> int:
        return -(-count // int(self._library.lanes()))


def _memory(size: int) -> Tensor:
    """``size`` bytes, all zero, that begin where a vector may (PyTorch's memory does)."""
    return torch.zeros(size, dtype=torch.uint8)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
