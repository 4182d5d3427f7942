"""Several models of one recipe trained as one: their weights stacked, one set of kernels for all.

Every replica has its own seed: its first weights and its own shuffling and augmentation are those it would have
alone. Only dropout draws from one stream for all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from lenet5.data.datasets import Split, Splits, to_float
from lenet5.network.lenet5 import LeNet5
from lenet5.params import ModelParams, TrainParams
from lenet5.results.evaluation import Measure
from lenet5.training import cuda_graph
from lenet5.training.engine import (
    EngineChoice,
    EpochResult,
    brief_steps,
    compiled,
    run_launches,
    run_steps,
    state_tensors,
)
from lenet5.training.loop import DivergedError, Progress, epoch_row, make_model, refuse_divergence
from lenet5.training.recipe import (
    EpochPlan,
    autograd,
    draw_batch,
    draw_plan,
    learning_rates,
    loss_of_logits,
    make_optimizer,
    mix_labels,
)

MEASURED_AT_ONCE = 32_000
"""Images, times the replicas: their activations have to fit into memory."""


class Stack(nn.Module):
    """N models of one shape: (N, B, 1, 28, 28), or one (B, 1, 28, 28) for all, -> (N, B, 10) logits."""

    def __init__(self, models: Sequence[LeNet5]) -> None:
        super().__init__()
        weights, _ = stack_module_state(list(models))
        self._names = list(weights)
        self.weights = nn.ParameterList(weights.values())
        self._shape = [models[0]]  # in a list: its weights are not the stack's

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each replica."""
        shape = self._shape[0].train(self.training)
        images_dim = 0 if images.dim() == 5 else None

        def one(weights: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(shape, weights, (images,))
            return logits

        every = torch.vmap(one, in_dims=(0, images_dim), randomness="different")
        logits: Tensor = every(dict(zip(self._names, self.weights, strict=True)), images)
        return logits

    def weights_of(self, replica: int) -> dict[str, Tensor]:
        """The state dict of one replica."""
        return {name: value[replica] for name, value in zip(self._names, self.weights, strict=True)}


def replica_epochs(
    model: ModelParams,
    splits: Splits,
    params: TrainParams,
    seeds: Sequence[int],
    choice: EngineChoice,
    recorder: cuda_graph.Recorder = cuda_graph.record,
) -> Iterator[list[Progress]]:
    """How far a replica from each of ``seeds`` has come, after each epoch, until all are through.

    Raises UserError where one diverges.
    """
    data, device = splits.train, splits.train.labels.device
    stack = Stack([make_model(model, seed, device) for seed in seeds])
    optimizer = make_optimizer(stack.parameters(), params)
    loss_of = partial(stack_loss, stack, data, params)
    plain = partial(autograd, loss_of, optimizer)
    fast = partial(autograd, compiled(loss_of, params.deterministic), optimizer) if choice.compiles else plain
    steps: Callable[..., Tensor] = partial(run_steps, stack, optimizer, plain, fast, params.batch_size)
    counts: Callable[..., Tensor] = partial(stack_counts, stack, list(splits.measured().values()))
    if choice.name == "graph":
        brief = partial(brief_steps, steps, params.batch_size)
        steps = cuda_graph.Replayed(steps, brief, partial(state_tensors, stack, optimizer), recorder)
        counts = cuda_graph.Replayed(counts, counts, list, recorder)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    progress = [Progress(params) for _ in seeds]
    for number in range(1, params.epochs + 1):
        rates = learning_rates(params, math.ceil(len(data) / params.batch_size), number)
        plan = stack_plans([draw_plan(len(data), params.augmentation, generator) for generator in generators])
        losses, correct = run_launches(steps, plan, rates, params.batch_size, device)
        measured = counts().tolist()
        for replica, one in enumerate(progress):
            if not one.out_of_patience():
                result = EpochResult.of(losses[:, replica], correct[:, replica], len(data), params.batch_size)
                with _naming(seeds[replica]):
                    refuse_divergence(result, number, rates)
                row = epoch_row(_measures(splits, measured, replica), result, number, rates[-1])
                one.add(row, stack.weights_of(replica))
        yield progress
        if all(one.out_of_patience() for one in progress):
            return


@contextmanager
def _naming(seed: int) -> Iterator[None]:
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"with seed {seed} {error}") from None


def stack_loss(stack: Stack, data: Split, params: TrainParams, *batch: Tensor) -> tuple[Tensor, Tensor]:
    """As ``batch_loss``, for N replicas: ``order`` (B, N) and the others alike -> (N,) and (N,)."""
    plan = EpochPlan(*batch)
    images = draw_batch(data.images, params.augmentation, EpochPlan(*(part.flatten(0, 1) for part in batch)))
    labels = data.labels[plan.order]
    targets = mix_labels(labels, data.labels, params.augmentation, plan)
    with torch.autocast(labels.device.type, torch.bfloat16, params.precision == "bf16", cache_enabled=False):
        logits = stack(to_float(images).unflatten(0, plan.order.shape).transpose(0, 1))
        losses = loss_of_logits(logits.permute(1, 2, 0), targets, params, "none")
    return losses.mean(0), (logits.detach().argmax(2) == labels.T).sum(1)


def stack_counts(stack: Stack, splits: Sequence[Split]) -> Tensor:
    """Mean loss and number of rightly classified images, (splits, N, 2) float64, left on the device."""
    stack.eval()
    with torch.inference_mode():
        return torch.stack([torch.stack(_sums(stack, split), dim=1) for split in splits])


def stack_plans(plans: Sequence[EpochPlan]) -> EpochPlan:
    """The plans side by side, place by place: ``order`` (n, N)."""
    return EpochPlan(*(torch.stack(parts, 1) for parts in zip(*plans, strict=True)))


def _sums(stack: Stack, split: Split) -> tuple[Tensor, Tensor]:
    images = max(1, MEASURED_AT_ONCE // len(stack.weights[0]))
    logits = torch.cat([stack(to_float(part)) for part in split.images.split(images)], dim=1)
    labels = split.labels.expand(logits.shape[:2])
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return losses.double().mean(1), (logits.argmax(2) == labels).sum(1).double()


def _measures(splits: Splits, counts: list[list[list[float]]], replica: int) -> dict[str, Measure]:
    return {
        name: Measure(count[replica][0], count[replica][1] / len(split))
        for (name, split), count in zip(splits.measured().items(), counts, strict=True)
    }
