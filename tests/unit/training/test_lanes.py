import ctypes
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from lenet5.data.datasets import Split, Splits
from lenet5.errors import UserError
from lenet5.files import remove_old
from lenet5.network.lenet5 import ACTIVATIONS, LeNet5
from lenet5.params import ModelParams, TrainParams
from lenet5.training import compiler, lanes
from lenet5.training.compiler import BuildError, build, compiler_command
from lenet5.training.engine import Engine, EngineChoice, choose_engine
from lenet5.training.loop import make_model
from lenet5.training.recipe import EpochPlan, draw_batch, draw_plan, loss_of_logits, make_optimizer, mix_labels

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or not shutil.which(compiler_command()[0]),
    reason="lanes need Linux and a C++ compiler",
)
ModelParamsOf, TrainParamsOf = Callable[..., ModelParams], Callable[..., TrainParams]
RandomSplit = Callable[[int, int], Split]
CPU = torch.device("cpu")
MACROS = {"ACTIVATION": "relu", "POOLING": "max"}
LANES = EngineChoice("lanes", False, "")
BATCHES = [1, 16, 21, 200]
COMBINATIONS: list[dict[str, Any]] = [
    {"activation": "sigmoid"},
    {"pooling": "max", "activation": "tanh"},
    {"c3": "paper", "activation": "relu"},
    {"pooling": "max", "activation": "relu", "c3": "paper"},
    {"pooling": "max", "activation": "leaky_relu"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the libraries of these tests are kept."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(autouse=True)
def _workspace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(folder))


@pytest.fixture(params=["this CPU's", "the other width"])
def width(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiler as it is; and made to take eight lanes for sixteen, or sixteen, of two registers each, for eight."""
    if request.param != "this CPU's":
        if platform.machine() != "x86_64":
            pytest.skip("there are always eight lanes here")
        flag = "-mno-avx512f" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "-D__AVX512F__"
        monkeypatch.setenv("CXX", str(script(folder / "other", f'exec {" ".join(compiler_command())} "$@" {flag}')))
    return str(request.param)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def native(model: LeNet5, data: Split, params: TrainParams, threads: int = 2) -> lanes.Lanes:
    return lanes.Lanes(lanes.library(model.params), model, Splits(data, data, None, data), params, threads)


def a_step(trained: lanes.Lanes, batch: tuple[Tensor, ...], rate: float = 0) -> tuple[float, float]:
    """Its loss and hits."""
    loss, correct = trained.steps(*batch, torch.tensor([rate])).flatten().tolist()
    return loss, correct


def batch_of(size: int, of: int, params: TrainParams) -> tuple[Tensor, ...]:
    # A seed whose images have no two pixels side by side that float32 could not tell apart, for max pooling.
    plan = draw_plan(of, params.augmentation, torch.Generator().manual_seed(size + 2))
    return tuple(part[:size] for part in plan)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("q", [0, 0.3])
@pytest.mark.parametrize("changes", COMBINATIONS, ids=str)
def test_loss_hits_and_gradients_are_no_further_from_float64_than_pytorchs(
    model_params: ModelParamsOf, train_params: TrainParamsOf, random_split: RandomSplit,
    changes: dict[str, Any], q: float, size: int,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    model, data = LeNet5(model_params(**changes)), random_split(250, 1)
    changed = train_params(
        batch_size=size,
        label_smoothing=0.1,
        loss_q=q,
        augmentation={"horizontal_flip": True, "shift": 3, "erasing": 0.5, "cutmix": 0.5},
    )
    batch = batch_of(size, len(data), changed)
    plan, augmentation = EpochPlan(*batch), changed.augmentation
    images, labels = draw_batch(data.images, augmentation, plan)[:, None], data.labels[plan.order]
    targets = mix_labels(labels, data.labels, augmentation, plan)

    def by_pytorch(dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
        net = deepcopy(model).to(dtype)
        logits = net(images.to(dtype) / 255)
        loss = loss_of_logits(logits, targets.to(dtype), changed, "mean")
        return loss, (logits.argmax(1) == labels).sum(), list(torch.autograd.grad(loss, net.parameters()))

    trained = native(model, data, changed)
    loss, correct = a_step(trained, batch)
    exact, hits, gradients = by_pytorch(torch.float64)
    assert abs(loss - exact) < 1e-6 * exact
    assert correct == hits
    own, usual = (
        [relative(found, right) for found, right in zip(some, gradients, strict=True)]
        for some in (trained.gradients(), by_pytorch(torch.float32)[2])
    )
    assert max(own) <= max(usual) or size == 1  # of one image either is as near as float32 goes
    for (name, _), error, of_pytorch in zip(model.named_parameters(), own, usual, strict=True):
        assert error < max(2e-6, of_pytorch), name  # a bias is a sum of few numbers, now better and now worse


def test_dropout_draws_the_numbers_that_pytorch_draws(
    model_params: ModelParamsOf, train_params: TrainParamsOf, random_split: RandomSplit
) -> None:
    torch.manual_seed(0)
    model, data = LeNet5(model_params(activation="tanh", dropout=0.3)), random_split(30, 1)
    params = train_params(batch_size=21)
    batch = batch_of(21, len(data), params)
    random = torch.get_rng_state()
    trained = native(model, data, params)
    loss, _ = a_step(trained, batch)
    torch.set_rng_state(random)
    expected = F.cross_entropy(model(data.images[batch[0]][:, None] / 255), data.labels[batch[0]])
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for found, right in zip(trained.gradients(), gradients, strict=True):
        assert relative(found, right) < 1e-5


@pytest.mark.parametrize("c3", ["full", "paper"])
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "weight_decay": 0.1},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1},
    ],
    ids=str,
)
def test_the_optimizer_steps_as_pytorchs(
    model_params: ModelParamsOf, train_params: TrainParamsOf, random_split: RandomSplit,
    changes: dict[str, Any], c3: str,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    model, data, params = LeNet5(model_params(c3=c3)), random_split(100, 1), train_params(batch_size=20, **changes)
    usual = deepcopy(model)
    trained, optimizer = native(model, data, params), make_optimizer(usual.parameters(), params)
    for number, rate in enumerate([0.02, 0.01, 0.01, 0.005]):
        a_step(trained, batch_of(20, len(data), params), rate)
        for weight, gradient in zip(usual.parameters(), trained.gradients(), strict=True):
            weight.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = torch.tensor(rate)
        optimizer.step()
        for one, other in zip(model.parameters(), usual.parameters(), strict=True):
            assert relative(one, other) < 5e-7, number


@pytest.mark.parametrize("changes", COMBINATIONS, ids=str)
def test_measuring_agrees_with_evaluation(
    model_params: ModelParamsOf, train_params: TrainParamsOf, random_split: RandomSplit, changes: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model, data = LeNet5(model_params(dropout=0.5, **changes)), random_split(133, 1)
    with torch.inference_mode():
        logits = deepcopy(model).eval().double()(data.images[:, None].double() / 255)
    for loss, correct in native(model, data, train_params()).counts().tolist():
        assert loss == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-6)
        assert correct == (logits.argmax(1) == data.labels).sum()


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adamw", "lr": 0.002}])
def test_a_training_is_the_same_to_the_last_bit_on_any_number_of_threads(
    model_params: ModelParamsOf, train_params: TrainParamsOf, random_split: RandomSplit, optimizer: dict[str, Any]
) -> None:
    data = random_split(500, 1)
    params = train_params(
        batch_size=150,
        weight_decay=0.01,
        augmentation={"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.5},
        **optimizer,
    )
    trained = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = LeNet5(model_params(dropout=0.2))
        splits = Splits(data, data, None, data)
        engine = Engine(LANES, model, splits, params)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            losses = engine.train_epoch(draw_plan(500, params.augmentation, generator), [0.01] * 4).losses
        trained.append([losses, torch.tensor(list(engine.measure()["test"].__dict__.values())), *model.parameters()])
    for other in trained[1:]:
        assert all(torch.equal(one, two) for one, two in zip(trained[0], other, strict=True))


# Units in the last place of the result where that is not tiny, and else an error of 1e-38.
@pytest.mark.usefixtures("width")
@pytest.mark.parametrize(("activation", "bound"), [("sigmoid", 4), ("tanh", 4), ("relu", 0), ("leaky_relu", 1)])
def test_activations_are_exact_to_a_few_units_in_the_last_place_over_all_of_float32(
    model_params: ModelParamsOf, activation: str, bound: float
) -> None:
    exact: dict[str, Callable[[Any], Any]] = {
        "sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)), "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0),
        "leaky_relu": lambda x: np.maximum(x, 0.01 * x),
    }  # fmt: skip
    built = lanes.library(model_params(activation=activation))
    bits = np.arange(0, 2**32, 1009, dtype=np.uint64)[: -(2**32 // 1009 % 16) or None].astype(np.uint32)
    x = bits[: len(bits) // 16 * 16].view(np.float32)
    y = np.empty_like(x)
    built.activation(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(x)))
    assert np.isnan(y[np.isnan(x)]).all()
    finite = np.isfinite(x)
    with np.errstate(over="ignore"):
        right = exact[activation](x[finite].astype(np.float64))
    units = np.abs(y[finite] - right) / np.maximum(np.spacing(np.abs(right).astype(np.float32)), 1e-37)
    assert units.max() <= bound


WHAT_TRAINING_IMPORTS = """
import sys
from pathlib import Path

import torch

from lenet5.data.datasets import Split, Splits
from lenet5.params import load_params
from lenet5.training.loop import Training, make_model, prepare

def load(*_):
    return Splits(*[Split(torch.zeros(400, 28, 28, dtype=torch.uint8), torch.zeros(400, dtype=torch.long))] * 4)

params = load_params(Path("params.yaml"))
splits, engine = prepare(Path(), params, load)
next(Training(make_model(params.model, 0, torch.device("cpu")), splits, params.train, engine).epochs())
print(engine.name, *sys.modules)
"""


def test_training_starts_without_the_modules_of_torch_compile_whose_import_takes_seconds(tmp_path: Path) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["train"] |= {"device": "cpu", "engine": "lanes", "optimizer": "adamw", "deterministic": True}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-c", WHAT_TRAINING_IMPORTS], cwd=tmp_path, env=os.environ | {"DVC_ROOT": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    engine, *modules = done.stdout.split()
    assert engine == "lanes"
    assert not {"torch._dynamo", "torch._inductor"} & set(modules)


def test_nan_in_the_weights_is_nan_in_the_loss(
    model_params: ModelParamsOf, train_params: TrainParamsOf, random_split: RandomSplit
) -> None:
    data, params = random_split(20, 1), train_params(batch_size=20)
    for activation in ACTIVATIONS:
        for name in ("c1", "c3", "c5", "f6", "output"):
            model = LeNet5(model_params(activation=activation))
            with torch.no_grad():
                getattr(model, name).bias[0] = torch.nan
            loss, _ = a_step(native(model, data, params), batch_of(20, 20, params))
            assert math.isnan(loss), (activation, name)


def test_weights_that_the_compiled_code_would_misread_are_refused(
    model_params: ModelParamsOf, train_params: TrainParamsOf, random_split: RandomSplit
) -> None:
    for changed in (LeNet5(model_params()).double(), LeNet5(model_params()).to(memory_format=torch.channels_last)):
        with pytest.raises(TypeError, match="contiguous float32"):
            native(changed, random_split(20, 1), train_params())


def test_auto_takes_lanes_on_a_cpu_in_fp32_and_says_why_where_it_does_not(
    model_params: ModelParamsOf, train_params: TrainParamsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_engine(model_params(), train_params(engine="auto"), 100, CPU).name == "lanes"
    assert choose_engine(model_params(), train_params(engine="lanes"), 100, CPU).name == "lanes"
    assert choose_engine(model_params(), train_params(engine="eager"), 100, CPU).name == "eager"
    rounded = choose_engine(model_params(), train_params(engine="auto", precision="bf16"), 100, CPU)
    assert (rounded.name, "train.precision is bf16" in rounded.reason) == ("eager", True)
    with pytest.raises(UserError, match=r"train\.engine: lanes cannot be had, train\.precision is bf16"):
        choose_engine(model_params(), train_params(engine="lanes", precision="bf16"), 100, CPU)
    monkeypatch.setattr(lanes.sys, "platform", "win32")
    assert "for Linux" in choose_engine(model_params(), train_params(engine="auto"), 100, CPU).reason


def test_a_compiler_that_fails_leaves_the_steps_to_pytorch_and_the_reason_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_params: ModelParamsOf, train_params: TrainParamsOf,
    random_split: RandomSplit,
) -> None:  # fmt: skip
    def trained(choice: EngineChoice) -> Tensor:
        data, params = random_split(100, 1), train_params(batch_size=30)
        model = make_model(model_params(), 0, CPU)
        plan = draw_plan(100, params.augmentation, torch.Generator().manual_seed(0))
        return Engine(choice, model, Splits(data, data, None, data), params).train_epoch(plan, [0.01] * 4).losses

    by_lanes = trained(LANES)
    monkeypatch.setattr(compiler, "_PATIENCE", 1)
    other_cpus = 'for word; do [ "$last" = -o ] && echo ELF of another CPU > "$word"; last=$word; done; exit 0'
    for name, text, reason in (
        ("refuses", "echo no such flag >&2; exit 1", "refuses failed: no such flag"),
        (
            "wordy",
            "echo In file included >&2; echo x.hpp:3: error: no lanes >&2; exit 1",
            "wordy failed: x.hpp:3: error",
        ),
        ("dies", "kill -9 $$", "dies failed: exit status -9"),
        ("hangs", "sleep 30", "hangs did not answer within 1 s"),
        ("silent", "exit 0", "silent made nothing that can be used"),
        ("cross", other_cpus, "cross made nothing that can be used"),
    ):
        monkeypatch.setenv("CXX", str(script(tmp_path / name, text)))
        choice = choose_engine(model_params(), train_params(engine="auto"), 100, CPU)
        assert choice.name == "eager"
        assert reason in choice.reason
        assert "\n" not in choice.reason
    torch.testing.assert_close(trained(choice), by_lanes, rtol=1e-4, atol=0)
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert "none is not installed" in choose_engine(model_params(), train_params(engine="auto"), 100, CPU).reason


@pytest.mark.skipif(
    platform.machine() != "x86_64" or "avx512f" in Path("/proc/cpuinfo").read_text(),
    reason="this CPU has the instructions that another lacks",
)
def test_a_library_for_another_cpu_is_not_kept_and_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++ -mavx512f")
    with pytest.raises(BuildError, match=r"^made nothing that can be used: tried out, it failed: exit status -4$"):
        build(compiler_command(), lanes.SOURCE, MACROS, tmp_path, lanes.TRIAL)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(("set_to", "counted"), [("{} -DEXTRA", "-DEXTRA "), ("env {}", "-O2 "), ("", None)])
def test_the_compiler_may_come_with_options_or_before_another_or_be_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_to: str, counted: str | None
) -> None:
    counting = script(tmp_path / "counting", f'echo "$@" >> {tmp_path}/calls\nexec g++ "$@"')
    monkeypatch.setenv("CXX", set_to.format(counting))
    built = build(compiler_command(), lanes.SOURCE, MACROS, tmp_path / "kept", lanes.TRIAL)
    assert built.lanes() in (8, 16)
    assert counted is None or counted in (tmp_path / "calls").read_text()


def test_a_library_is_compiled_once_and_anew_when_anything_about_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    monkeypatch.setenv("CXX", str(script(tmp_path / "counting", f'echo "$@" >> {calls}\nexec g++ "$@"')))
    source, folder = tmp_path / "source/lanes.cpp", tmp_path / "kept"
    shutil.copytree(lanes.SOURCE.parent, source.parent)
    macros = dict(MACROS)

    def compiled() -> int:
        before = calls.read_text().count(" -o ") if calls.exists() else 0
        assert build(compiler_command(), source, macros, folder, lanes.TRIAL).lanes() in (8, 16)
        return calls.read_text().count(" -o ") - before

    assert [compiled(), compiled()] == [1, 0]
    (library,) = folder.glob("*.so")
    content = library.read_bytes()
    for damaged in (content[:1000], content[:5000] + b"\0" + content[5001:], b""):
        replaced = tmp_path / "damaged"  # a file that is loaded must not be written to
        replaced.write_bytes(damaged)
        replaced.replace(library)
        assert [compiled(), compiled()] == [1, 0]
        assert library.read_bytes()[:4] == b"\x7fELF"
    macros["POOLING"] = "avg"
    assert [compiled(), compiled()] == [1, 0]
    (source.parent / "vectors.hpp").write_text((source.parent / "vectors.hpp").read_text() + "// changed\n")
    assert [compiled(), compiled()] == [1, 0]
    monkeypatch.setattr(compiler, "_cpu", lambda: "another, whose folder was copied")
    assert [compiled(), compiled()] == [1, 0]


def test_a_process_goes_on_with_the_code_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_params: ModelParamsOf
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(lanes, "SOURCE", tmp_path / "source/lanes.cpp")
    shutil.copytree(Path(lanes.__file__).parent / "kernels", lanes.SOURCE.parent)
    before = lanes.library(model_params())
    lanes.SOURCE.write_text("no C++ any more")
    assert lanes.library(model_params()) is before


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A source that is compiled in no time."""
    source = tmp_path / "source/one.cpp"
    source.parent.mkdir()
    source.write_text('extern "C" int one() { return 1; }\n')
    return source


def test_a_library_is_tried_out_where_it_is_kept_for_the_temporary_folder_may_allow_no_programs(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cannot be used"))
    assert build(compiler_command(), one, {}, tmp_path / "kept", "library.one()").one() == 1


def test_a_library_that_is_taken_up_again_does_not_grow_old(one: Path, tmp_path: Path) -> None:
    build(compiler_command(), one, {}, tmp_path / "kept", "library.one()")
    (library,) = (tmp_path / "kept").glob("*.so")
    os.utime(library, (0, 0))
    build(compiler_command(), one, {}, tmp_path / "kept", "library.one()")
    remove_old(tmp_path / "kept")
    assert library.exists()


def test_what_is_left_of_a_compilation_that_was_killed_goes_when_it_is_old(one: Path, tmp_path: Path) -> None:
    killing = script(tmp_path / "killing", 'case " $* " in *" -o "*) kill -9 $PPID;; esac')
    code = (
        "import sys; from pathlib import Path; from lenet5.training.compiler import build;"
        "build([sys.argv[3]], Path(sys.argv[1]), {}, Path(sys.argv[2]), '')"
    )
    command = [sys.executable, "-c", code, str(one), str(tmp_path / "kept"), str(killing)]
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.suffix for path in (tmp_path / "kept").iterdir()) == [".lock", ".so"]
    for path in (tmp_path / "kept").iterdir():
        os.utime(path, (0, 0))
    remove_old(tmp_path / "kept")
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_to_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"made nothing that can be used: .*file"):
        build(compiler_command(), lanes.SOURCE, MACROS, tmp_path / "file/libraries", lanes.TRIAL)


def test_four_processes_that_need_the_same_library_compile_it_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    counting = script(tmp_path / "counting", f'echo "$@" >> {calls}\nexec g++ "$@"')
    code = (
        "import sys; from pathlib import Path; from lenet5.training import lanes, compiler;"
        f"compiler.build([sys.argv[2]], lanes.SOURCE, {MACROS}, Path(sys.argv[1]), lanes.TRIAL)"
    )
    command = ["python", "-c", code, str(tmp_path / "kept"), str(counting)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert calls.read_text().count(" -o ") == 1
