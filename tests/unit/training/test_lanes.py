import platform
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lenet5 import lanes
from lenet5.compiler import build, compiler_name
from lenet5.datasets import Split, Splits
from lenet5.engine import Engine, EngineChoice, choose_engine
from lenet5.model import LeNet5
from lenet5.params import ModelParams, TrainParams
from lenet5.recipe import draw_plan, make_optimizer

needs_lanes = pytest.mark.skipif(not lanes.buildable(), reason="lanes.cpp needs Linux and a C++ compiler")
BATCHES = [1, 16, 21, 200]


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def gradients(model: LeNet5, logits: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(logits, torch.arange(len(logits)) % 10)
    return dict(zip(model.state_dict(), torch.autograd.grad(loss, model.parameters()), strict=True))


@needs_lanes
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pooling": "max", "activation": "tanh"},
        {"c3": "paper", "activation": "relu"},
        {"pooling": "max", "activation": "relu", "c3": "paper"},
    ],
    ids=str,
)
def test_the_layout_changes_neither_logits_nor_gradients(
    model_params: Callable[..., ModelParams], changes: dict[str, Any], batch: int
) -> None:
    torch.manual_seed(0)
    model = LeNet5(model_params(**changes)).to(memory_format=torch.channels_last)
    images = torch.rand(batch, 1, 28, 28)
    exact = deepcopy(model).double()
    expected, logits = exact(images.double()), lanes.laid_out(model)(images)
    assert logits.shape == expected.shape
    assert relative(logits, expected) < 1e-5
    found = gradients(model, logits)
    for name, gradient in gradients(exact, expected).items():
        assert relative(found[name], gradient) < 1e-5, name


@pytest.fixture(params=["this CPU's", "eight lanes"])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the compiler makes of lanes.cpp for this CPU, and for one whose registers are half as wide."""
    if request.param == "eight lanes":
        if platform.machine() != "x86_64":
            pytest.skip("there are always eight lanes here")
        narrow = tmp_path / "narrow"
        narrow.write_text(f'#!/bin/sh\nexec {compiler_name()} "$@" -mno-avx512f\n')
        narrow.chmod(0o755)
        monkeypatch.setenv("CXX", str(narrow))
        built = build(lanes.SOURCE)
        assert built.lanes() == 8
        monkeypatch.setattr(lanes, "library", lambda: built)
    return lanes.library()


@needs_lanes
@pytest.mark.parametrize(("maps", "kernels", "size"), [(1, 6, 32), (6, 16, 14)], ids=["C1", "C3"])
def test_convolution_and_gradients_are_pytorchs_for_any_number_of_threads(
    library: Any, maps: int, kernels: int, size: int
) -> None:
    torch.manual_seed(0)
    width = library.lanes()
    x = torch.randn(3, maps, size, size, width, requires_grad=maps > 1)
    weight, bias = torch.randn(kernels, maps, 5, 5, requires_grad=True), torch.randn(kernels, requires_grad=True)
    leaves = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
    side_by_side = F.conv2d(x.permute(0, 4, 1, 2, 3).flatten(0, 1), weight, bias)
    expected = side_by_side.unflatten(0, (3, width)).permute(0, 2, 3, 4, 1)
    gradient = torch.randn(expected.shape)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        found = lanes.correlate(x, weight, bias)
        results.append([found, *torch.autograd.grad(found, leaves, gradient)])
    torch.set_num_threads(threads)
    for one, other, right in zip(*results, [expected, *torch.autograd.grad(expected, leaves, gradient)], strict=True):
        assert relative(one, right) < 1e-5
        assert torch.equal(one, other)


@needs_lanes
def test_tensors_that_the_compiled_code_would_misread_are_refused() -> None:
    weight, bias = torch.zeros(6, 1, 5, 5), torch.zeros(6)
    for maps in (torch.zeros(1, 1, 32, 32, 3), torch.zeros(1, 1, 32, 32, lanes.library().lanes(), dtype=torch.double)):  # type: ignore[union-attr]
        with pytest.raises(TypeError, match="float32 and"):
            lanes.correlate(maps, weight, bias)


@needs_lanes
@pytest.mark.parametrize("in_lanes", [True, False])
def test_an_engine_trains_in_lanes_when_it_is_chosen_so(
    monkeypatch: pytest.MonkeyPatch, model_params: Callable[..., ModelParams], train_params: Callable[..., TrainParams],
    random_split: Callable[[int, int], Split], in_lanes: bool,
) -> None:  # fmt: skip
    calls = []
    monkeypatch.setattr(lanes, "convolve", lambda *tensors, real=lanes.convolve: calls.append(0) or real(*tensors))
    model, data, params = LeNet5(model_params()), random_split(10, 0), train_params(batch_size=5)
    splits = Splits(data, data, None, data)
    choice = EngineChoice("eager", False, in_lanes, "")
    engine = Engine(choice, model, make_optimizer(model.parameters(), params), splits, params)
    engine.train_epoch(draw_plan(10, params.augmentation, torch.Generator()), [0.1] * 2)
    assert len(calls) == (4 if in_lanes else 0)  # two steps, C1 and C3


def test_a_compiler_that_fails_leaves_the_convolutions_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, train_params: Callable[..., TrainParams],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    refuses = tmp_path / "refuses"
    refuses.write_text("#!/bin/sh\necho no such flag >&2; exit 1\n")
    refuses.chmod(0o755)
    monkeypatch.setattr(lanes, "library", lanes.library.__wrapped__)
    none, cut_short = tmp_path / "none", tmp_path / "cut"
    cut_short.write_text("#!/bin/sh\nexit 0\n")
    cut_short.chmod(0o755)
    for compiler, error, said in (
        (refuses, subprocess.CalledProcessError, "refuses failed: no such flag\n"),
        (cut_short, OSError, "cannot open shared object file"),
        (none, FileNotFoundError, ""),
    ):
        monkeypatch.setenv("CXX", str(compiler))
        with pytest.raises(error):
            build(lanes.SOURCE)
        choice = choose_engine(train_params(engine="eager"), 100, torch.device("cpu"))
        assert not choice.in_lanes
        assert choice.title == "eager"
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == bool(said)


@needs_lanes
def test_only_fp32_on_a_cpu_is_laid_out_in_lanes(train_params: Callable[..., TrainParams]) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_engine(train_params(engine="eager"), 100, cpu).in_lanes
    assert not choose_engine(train_params(engine="eager", precision="bf16"), 100, cpu).in_lanes
    assert not choose_engine(train_params(engine="eager"), 100, cuda).in_lanes
