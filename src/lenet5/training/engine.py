"""How one epoch runs: as PyTorch runs it, in lanes on a CPU, compiled or captured in CUDA graphs. No tracking."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lenet5.data.datasets import Split, Splits
from lenet5.errors import UserError
from lenet5.network.lenet5 import LeNet5
from lenet5.params import ModelParams, TrainParams
from lenet5.results.evaluation import Measure, count
from lenet5.training import cuda_graph, inductor, lanes
from lenet5.training.recipe import BatchLoss, EpochPlan, Gradients, autograd, batch_loss, make_optimizer, train_step

STEPS_A_LAUNCH = 50
"""At most so many steps are recorded in one CUDA graph: some thousands of kernels. By analysis, not measured."""

STEPS_REPAYING_COMPILATION = 500_000
"""Steps after which compiling for a card has repaid its 12 to 20 s: it saves a captured step 9 of 49 kernels, some 30
microseconds. By analysis, not measured."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine really taken; whether its step is compiled; why, in words."""

    name: Literal["eager", "lanes", "compiled", "graph"]
    compiles: bool
    reason: str


def choose_engine(model: ModelParams, params: TrainParams, images: int, device: torch.device) -> EngineChoice:
    """The engine for ``params`` on ``images`` training images. The same whenever it is asked on one machine.

    Raises UserError for one that cannot work here.
    """
    if device.type == "cuda":
        return _choose_on_cuda(params, images)
    if params.engine in ("compiled", "graph"):
        raise UserError(f"train.engine: {params.engine} is for CUDA devices; set it to auto, lanes or eager")
    if params.engine == "eager":
        return EngineChoice("eager", False, "as train.engine says")
    try:
        if params.precision != "fp32":
            raise lanes.UnavailableError(f"train.precision is {params.precision}, not fp32")
        lanes.library(model)
    except lanes.UnavailableError as error:
        if params.engine == "lanes":
            raise UserError(f"train.engine: lanes cannot be had, {error}; mend that, or set it to auto") from None
        return EngineChoice("eager", False, f"lanes, which are faster, cannot be had: {error}")
    return EngineChoice("lanes", False, "fastest on a CPU" if params.engine == "auto" else "as train.engine says")


def _choose_on_cuda(params: TrainParams, images: int) -> EngineChoice:
    said = "as train.engine says"
    if params.engine == "lanes":
        raise UserError("train.engine: lanes is for CPUs; set it to auto, or train.device to cpu")
    if params.engine == "eager":
        return EngineChoice("eager", False, said)
    lacking = inductor.lacking()
    if params.engine == "compiled":
        if lacking:
            raise UserError(f"train.engine: compiled needs {lacking}; see to that, or set it to auto, graph or eager")
        return EngineChoice("compiled", True, said)
    steps = params.epochs * math.ceil(images / params.batch_size)
    repaid = steps >= STEPS_REPAYING_COMPILATION
    step = "compiled" if repaid and not lacking else "not compiled"
    worth = f": {steps:,} steps {'repay' if repaid else 'do not repay'} it"
    why = f", for want of {lacking}" if repaid and lacking else worth
    reason = said if params.engine == "graph" else "fastest on CUDA"
    return EngineChoice("graph", repaid and not lacking, f"{reason}, its step {step}{why}")


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
        return cls(losses, math.fsum((losses * sizes).tolist()) / images, correct.sum().item() / images)


class Engine:
    """Trains ``model`` on the splits' device, epoch by epoch, and measures it in between.

    ``recorder`` is what captures, given only by tests without a GPU.
    """

    def __init__(
        self,
        choice: EngineChoice,
        model: LeNet5,
        splits: Splits,
        params: TrainParams,
        recorder: cuda_graph.Recorder = cuda_graph.record,
    ) -> None:
        self._model, self._splits, self._params = model, splits, params
        self._optimizer: lanes.Lanes | torch.optim.Optimizer
        self._steps: Callable[..., Tensor]
        self._counts: Callable[..., Tensor]
        if choice.name == "lanes":
            native = lanes.Lanes(lanes.library(model.params), model, splits, params, torch.get_num_threads())
            self._optimizer, self._steps, self._counts = native, native.steps, native.counts
            return
        self._optimizer = optimizer = make_optimizer(model.parameters(), params)
        loss_of = partial(batch_loss, model, splits.train, params)
        plain = partial(autograd, loss_of, optimizer)
        fast = partial(autograd, compiled(loss_of, params.deterministic), optimizer) if choice.compiles else plain
        self._steps = partial(run_steps, model, optimizer, plain, fast, params.batch_size)
        self._counts = partial(count_all, model, list(splits.measured().values()))
        if choice.name == "graph":
            brief = partial(brief_steps, self._steps, params.batch_size)
            self._steps = cuda_graph.Replayed(self._steps, brief, partial(state_tensors, model, optimizer), recorder)
            self._counts = cuda_graph.Replayed(self._counts, self._counts, list, recorder)

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


def compiled(loss_of: BatchLoss, deterministic: bool) -> BatchLoss:
    """``loss_of`` through torch.compile, its backward too; built when first called."""
    # Deterministic: no kernel is chosen by timing it, for another may round otherwise.
    fast: BatchLoss = torch.compile(loss_of, fullgraph=True, dynamic=False, options={"deterministic": deterministic})
    return fast


def run_launches(
    steps: Callable[..., Tensor], plan: EpochPlan, rates: Sequence[float], batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Run an epoch in as few calls of ``steps`` as may be; each step's loss and hits, (steps, ...), on the CPU."""
    count = steps_a_launch(len(plan.order) // batch_size)
    inputs = [part.to(device).split(count * batch_size) for part in plan]
    launches = zip(*inputs, torch.tensor(rates, device=device).split(count), strict=True)
    # Read from the device once: waiting after every step would leave a GPU idle.
    losses, correct = torch.cat([steps(*launch) for launch in launches], dim=1).cpu()
    return losses, correct


def steps_a_launch(steps: int) -> int:
    """How many of the ``steps`` whole batches of an epoch one launch takes: equal ones are recorded only once.

    The largest divisor of ``steps`` that STEPS_A_LAUNCH allows; where that would make more than twice the launches,
    as many as make them nearly equal.
    """
    most = max(1, min(steps, STEPS_A_LAUNCH))
    equal = next(count for count in range(most, 0, -1) if steps % count == 0)
    return equal if 2 * equal >= most else math.ceil(steps / math.ceil(steps / most))


def brief_steps(steps: Callable[..., Tensor], batch_size: int, *launch: Tensor) -> None:
    """The first of the steps that a launch takes and, where it is a smaller one, the last: all kernels there are."""
    *inputs, rates = launch
    steps(*(part[:batch_size] for part in inputs), rates[:1])
    if 0 < (rest := len(inputs[0]) % batch_size) < len(inputs[0]):
        steps(*(part[-rest:] for part in inputs), rates[-1:])


def run_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plain: Gradients,
    fast: Gradients,
    batch_size: int,
    *launch: Tensor,
) -> Tensor:
    """Train along ``launch``: n images of an ``EpochPlan``, its tensors one by one, and each step's learning rate.

    A step's loss and how many images it got right, (2, steps) float64; for N replicas (2, steps, N).

    A batch that is smaller than the others goes through ``plain``: compiling for it would not be repaid.
    """
    model.train()
    *plan, rates = launch
    results = []
    batches = zip(*(part.split(batch_size) for part in plan), strict=True)
    for batch, rate in zip(batches, rates, strict=True):
        gradients_of = fast if len(batch[0]) == batch_size else plain
        results.append(train_step(gradients_of, optimizer, batch, rate))
    return torch.stack([torch.stack(column).double() for column in zip(*results, strict=True)])


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step changes."""
    kept = [value for values in optimizer.state.values() for value in values.values()]
    return [*model.parameters(), *kept]


def count_all(model: LeNet5, splits: list[Split]) -> Tensor:
    """Mean loss and number of rightly classified images of each of ``splits``, (splits, 2) float64."""
    return torch.stack([count(model, split) for split in splits])
