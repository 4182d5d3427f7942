"""What torch.compile makes of a training step for a card that is not here.

As a script: capability and recipe (``NAME``, or ``NAME x REPLICAS``) -> JSON on stdout. The step is traced and
differentiated on the CPU; the graphs that come of it are moved to a card that does not exist, of which inductor and
Triton are told the properties. A process of its own, for Triton keeps the driver it was given.
"""

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.compile_fx as inductor
from torch import Tensor, fx
from torch._dynamo.device_interface import CudaInterface
from torch._guards import detect_fake_mode
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_map
from torch.utils._triton import has_triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from correctness import RECIPES, stand_in
from lenet5.training.device import set_deterministic, set_precision
from lenet5.training.engine import EngineChoice, compiled
from lenet5.training.loop import laid_out, make_model
from lenet5.training.recipe import autograd, batch_loss, draw_plan, make_optimizer
from lenet5.training.replicas import Stack, stack_loss, stack_plans

BATCH = 200
CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
WARP = 32


def properties(capability: tuple[int, int]) -> Any:
    """What inductor asks of a card: the figures are an H100's."""
    return SimpleNamespace(
        name="A Card", major=capability[0], minor=capability[1], gcnArchName="", warp_size=WARP,
        multi_processor_count=132, total_memory=80 << 30, L2_cache_size=50 << 20, regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=2048, max_threads_per_block=1024, shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=227 << 10, shared_memory_per_multiprocessor=228 << 10,
    )  # fmt: skip


@contextmanager
def card(capability: tuple[int, int]) -> Iterator[None]:
    """PyTorch and Triton see a card, as long as they do not compute on it."""
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_capability": capability,
        "get_device_properties": properties(capability), "get_device_name": "A Card", "is_bf16_supported": True,
        "synchronize": None, "get_rng_state": torch.get_rng_state(), "set_rng_state": None,
        "_lazy_init": None, "_exchange_device": 0, "_maybe_exchange_device": 0,
    }  # fmt: skip
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], WARP)
    driver.set_active(SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0))
    has_triton.cache_clear()
    with ExitStack() as stack:
        for name, answer in answers.items():
            for interface in (torch.cuda, CudaInterface):
                if name in vars(interface):
                    stack.enter_context(patch.object(interface, name, partial(_answer, answer)))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", new=True))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        yield


def _answer(answer: Any, *_: object, **__: object) -> Any:
    return answer


def move(graph: fx.GraphModule) -> list[Any]:
    """Let ``graph`` compute on the card, with the memory layouts of one; the tensors it takes there."""
    for node in graph.graph.nodes:
        node.args, node.kwargs = tree_map(_on_card, node.args), tree_map(_on_card, node.kwargs)
    graph.recompile()
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    mode = detect_fake_mode(inputs)
    with mode:
        inputs = tree_map(_on_card, inputs)
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)
    return inputs


def _on_card(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CARD)
    return CARD if value == CPU else value


def generate(recipe: str, capability: tuple[int, int]) -> dict[str, Any]:
    """Train a step of ``recipe``: the kernels that were generated for it, and what it calls beside them."""
    kernels: list[dict[str, Any]] = []
    programs: list[str] = []

    def compile_for_card(graph: fx.GraphModule, _: object, **settings: Any) -> Callable[..., Any]:
        on_cpu = copy.deepcopy(graph)
        with card(capability):
            inductor.compile_fx_inner(graph, move(graph), **settings)
        run: Any = lambda arguments: fx.Interpreter(on_cpu).boxed_run(arguments)  # noqa: E731
        run._boxed_call = True
        return run

    def build(_: object, name: str, source: str, **__: object) -> Any:
        kernel = getattr(PyCodeCache.load(source), name)
        kernel.precompile(warm_cache_only=True)  # to machine code, but nothing is loaded onto a card
        built = [one.kernel for one in kernel.compile_results]
        cubins = [{"arch": one.metadata.target.arch, "bytes": len(one.asm["cubin"])} for one in built]
        kernels.append({"name": name, "cubins": cubins, "atomics": "tl.atomic" in source})
        return kernel

    with (
        patch.object(inductor, "compile_fx", partial(inductor.compile_fx, inner_compile=compile_for_card)),
        patch.object(GraphLowering, "save_output_code", staticmethod(programs.append)),
        patch.object(AsyncCompile, "triton", build),
    ):
        step(recipe)
    bodies = [program[program.index("def call(") :].partition("def get_args")[0] for program in programs]
    return {
        "kernels": kernels,
        "launches": [name for body in bodies for name in re.findall(r"(\w+)\.run\(", body)],
        "calls": [name for body in bodies for name in re.findall(r"(?:extern_kernels|torch\.ops)\.([\w.]+)\(", body)],
        "on_cpu": [line.strip() for body in bodies for line in body.splitlines() if re.search("cpu|cpp", line)],
    }


def step(recipe: str) -> None:
    """A step, forward and backward, through what the engine compiles; of several replicas where the name says so."""
    name, _, replicas = recipe.partition(" x ")
    model, params = RECIPES[name]
    set_deterministic(True)
    set_precision(params.precision, CPU)
    data = stand_in(1000, 0)
    if replicas:
        stack = Stack([make_model(model, seed, CPU) for seed in range(int(replicas))])
        weights, loss_of = list(stack.parameters()), partial(stack_loss, stack, data, params)
    else:
        alone = laid_out(make_model(model, 0, CPU), EngineChoice("graph", True, ""))
        weights, loss_of = list(alone.parameters()), partial(batch_loss, alone, data, params)
    draws = [draw_plan(BATCH, params.augmentation, torch.Generator()) for _ in range(int(replicas or 1))]
    batch = stack_plans(draws) if replicas else draws[0]
    autograd(compiled(loss_of, deterministic=True), make_optimizer(weights, params), *batch)
    assert all(weight.grad is not None for weight in weights)


if __name__ == "__main__":
    torch._inductor.config.fx_graph_cache = False
    torch._inductor.config.use_static_triton_launcher = False  # it drops what was compiled
    torch._inductor.config.compile_threads = 1
    torch._functorch.config.enable_autograd_cache = False
    major, minor = sys.argv[1].split(".")
    print(json.dumps(generate(sys.argv[2], (int(major), int(minor)))))
