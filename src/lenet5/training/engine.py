"""How one epoch runs: eager, compiled, or captured in CUDA graphs. No tracking."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lenet5 import cuda_graph, lanes
from lenet5.compiler import compiler_found, compiler_name
from lenet5.datasets import Split, Splits
from lenet5.errors import UserError
from lenet5.evaluation import Measure, count
from lenet5.model import LeNet5
from lenet5.params import TrainParams
from lenet5.recipe import BatchLoss, EpochPlan, batch_loss, train_step

STEPS_A_LAUNCH = 500
"""At most so many steps are recorded in one CUDA graph: a whole epoch at the usual batch sizes."""

COMPILATION_REPAID = 3_000_000
"""Images trained on after which compiling on a CPU has repaid the quarter of a minute it takes."""


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
    # Nothing here reads memory before it is written; filling it would cost a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic


def set_precision(precision: str, device: torch.device) -> None:
    """Allow, or forbid, that GPUs round the factors of float32 products to TF32.

    Raises UserError for tf32 on a CPU, which has none.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("train.precision: tf32 is for CUDA devices; set it to fp32 or bf16")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@dataclass(frozen=True)
class EngineChoice:
    """The engine really taken; whether its step is compiled, and laid out in lanes (lanes.py); why, in words."""

    name: Literal["eager", "compiled", "graph"]
    compiles: bool
    in_lanes: bool
    reason: str

    @property
    def title(self) -> str:
        """The engine for a person to read."""
        return f"{self.name}{', in lanes' if self.in_lanes else ''}"


def choose_engine(params: TrainParams, images: int, device: torch.device) -> EngineChoice:
    """The engine for ``params`` on ``images`` training images. The same whenever it is asked on one machine.

    Raises UserError for one that cannot work here.
    """
    compiler = compiler_found()
    if params.engine == "graph" and device.type != "cuda":
        raise UserError("train.engine: graph is for CUDA devices; set it to auto, eager or compiled")
    if params.engine == "compiled" and not compiler:
        raise UserError(
            f"train.engine: compiled needs a C++ compiler ({compiler_name()}) and Python's headers, and finds none; "
            "install them (g++ and python3-dev, say), or set it to auto or eager"
        )
    in_lanes = device.type == "cpu" and params.precision == "fp32" and lanes.library() is not None
    if params.engine != "auto":
        return EngineChoice(params.engine, compiler and params.engine != "eager", in_lanes, "as train.engine says")
    if device.type == "cuda":
        step = "its step compiled" if compiler else "its step not compiled, for want of a C++ compiler"
        return EngineChoice("graph", compiler, in_lanes, f"fastest on CUDA, {step}")
    if not compiler:
        return EngineChoice("eager", False, in_lanes, "no C++ compiler with Python's headers here")
    if params.epochs * images < COMPILATION_REPAID:
        return EngineChoice("eager", False, in_lanes, f"{params.epochs} epochs do not repay the compilation")
    return EngineChoice("compiled", True, in_lanes, f"{params.epochs} epochs repay the compilation")


@dataclass(frozen=True)
class EpochResult:
    """Running figures of one epoch, taken while the weights moved; ``losses`` (steps,) is each step's mean loss."""

    losses: Tensor
    mean_loss: float
    accuracy: float

    @classmethod
    def of(cls, losses: Tensor, correct: Tensor, images: int, batch_size: int) -> "EpochResult":
        """From each step's mean loss and number of hits, (steps,); the last batch may be smaller."""
        sizes = torch.full_like(losses, batch_size)
        sizes[-1] = images - batch_size * (len(losses) - 1)
        return cls(losses, (losses * sizes).sum().item() / images, correct.sum().item() / images)


class Engine:
    """Trains ``model`` on the splits' device, epoch by epoch, and measures it in between.

    ``recorder`` is what captures, given only by tests without a GPU.
    """

    def __init__(
        self,
        choice: EngineChoice,
        model: LeNet5,
        optimizer: torch.optim.Optimizer,
        splits: Splits,
        params: TrainParams,
        recorder: cuda_graph.Recorder = cuda_graph.record,
    ) -> None:
        self._model, self._optimizer, self._splits, self._params = model, optimizer, splits, params
        logits = lanes.laid_out(model) if choice.in_lanes else model
        plain = partial(batch_loss, logits, splits.train, params)
        fast = compiled(plain, params.deterministic) if choice.compiles else plain
        self._steps: Callable[..., Tensor] = partial(run_steps, model, optimizer, plain, fast, params.batch_size)
        self._counts: Callable[..., Tensor] = partial(count_all, model, list(splits.measured().values()))
        if choice.name == "graph":
            self._steps = cuda_graph.Replayed(self._steps, self._state, recorder)
            self._counts = cuda_graph.Replayed(self._counts, list, recorder)

    def train_epoch(self, plan: EpochPlan, rates: Sequence[float]) -> EpochResult:
        """Train on every image once, in the plan's order, with one learning rate a step."""
        size, device = self._params.batch_size, self._splits.train.labels.device
        losses, correct = run_launches(self._steps, plan, rates, size, device)
        return EpochResult.of(losses, correct, len(plan.order), size)

    def measure(self) -> dict[str, Measure]:
        """The weights as they stand on every split that is measured."""
        measured = self._splits.measured()
        return {
            name: Measure(loss, correct / len(split))
            for (name, split), (loss, correct) in zip(measured.items(), self._counts().tolist(), strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimizer's state."""
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for function in (self._steps, self._counts):
            if isinstance(function, cuda_graph.Replayed):
                function.forget()  # the optimizer has new tensors

    def _state(self) -> list[Tensor]:
        state = [value for values in self._optimizer.state.values() for value in values.values()]
        rates = [group["lr"] for group in self._optimizer.param_groups]
        return [*self._model.parameters(), *state, *rates]


def compiled(loss_of: BatchLoss, deterministic: bool) -> BatchLoss:
    """``loss_of`` through torch.compile, its backward too; built when first called."""
    # Deterministic: no kernel is chosen by timing it, for another may round otherwise.
    fast: BatchLoss = torch.compile(loss_of, fullgraph=True, dynamic=False, options={"deterministic": deterministic})
    return fast


def run_launches(
    steps: Callable[..., Tensor], plan: EpochPlan, rates: Sequence[float], batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Run an epoch in as few calls of ``steps`` as may be; each step's loss and hits, (steps, ...), on the CPU."""
    count = max(1, min(len(plan.order) // batch_size, STEPS_A_LAUNCH))
    inputs = [part.to(device).split(count * batch_size) for part in (plan.order, plan.flips, plan.shifts)]
    launches = zip(*inputs, torch.tensor(rates, device=device).split(count), strict=True)
    # Read from the device once: waiting after every step would leave a GPU idle.
    losses, correct = torch.cat([steps(*launch) for launch in launches], dim=1).cpu()
    return losses, correct


def run_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plain: BatchLoss,
    fast: BatchLoss,
    batch_size: int,
    order: Tensor,
    flips: Tensor,
    shifts: Tensor,
    rates: Tensor,
) -> Tensor:
    """Train along ``order`` (n,); a step's loss and how many images it got right, (2, steps) float64.

    For N replicas ``order`` is (n, N) and the result (2, steps, N).

    A batch that is smaller than the others goes through ``plain``: compiling for it would not be repaid.
    """
    model.train()
    results = []
    batches = zip(order.split(batch_size), flips.split(batch_size), shifts.split(batch_size), strict=True)
    for batch, rate in zip(batches, rates, strict=True):
        loss_of = fast if len(batch[0]) == batch_size else plain
        results.append(train_step(loss_of, optimizer, batch, rate))
    return torch.stack([torch.stack(column).double() for column in zip(*results, strict=True)])


def count_all(model: LeNet5, splits: list[Split]) -> Tensor:
    """Mean loss and number of rightly classified images of each of ``splits``, (splits, 2) float64."""
    return torch.stack([count(model, split) for split in splits])
