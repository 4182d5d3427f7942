"""Cards and drivers that are not here: each trouble gives its one line, and the process its exit status."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lenet5.data.datasets import Split, Splits
from lenet5.errors import one_line_errors
from lenet5.params import ModelParams, Params, TrainParams
from lenet5.training import checkpoint, cuda_graph, device, inductor, recipe, replicas
from lenet5.training import engine as engine_module
from lenet5.training.card_errors import CardError, card_errors
from lenet5.training.cards import Driver, NoDriverError
from lenet5.training.device import card_facts, pick_device, set_precision
from lenet5.training.engine import Engine, EngineChoice, brief_steps, choose_engine, run_launches, steps_a_launch
from lenet5.training.loop import make_model
from lenet5.training.recipe import draw_plan, make_optimizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def with_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), name: str = "A Card") -> None:
    answers = {
        "is_available": True, "device_count": 1, "get_arch_list": WHEEL, "get_device_capability": capability,
        "get_device_name": name,
    }  # fmt: skip
    for function, answer in answers.items():
        monkeypatch.setattr(torch.cuda, function, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@contextmanager
def told(capsys: pytest.CaptureFixture[str], said: str) -> Iterator[None]:
    """What is done inside ends the process with status 1, and with one line."""
    with pytest.raises(SystemExit) as ended, one_line_errors("train"):
        yield
    line = capsys.readouterr().err
    assert ended.value.code == 1
    assert re.search(f"^train: .*{said}", line), line
    assert line.count("\n") == 1


def no_card(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.version, "cuda", "13.0")
    patch.setattr(device, "ask_driver", lambda: Driver("580.95", 13, ("A Card",)))
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def older_than_the_wheel(patch: pytest.MonkeyPatch) -> None:
    with_card(patch, (6, 1), "An Old Card")


def build_for_cpus(patch: pytest.MonkeyPatch) -> None:
    no_card(patch)
    patch.setattr(torch.version, "cuda", None)


def old_driver(patch: pytest.MonkeyPatch) -> None:
    no_card(patch)
    patch.setattr(device, "ask_driver", lambda: Driver("535.1", 12, ("A Card",)))


def hidden(patch: pytest.MonkeyPatch) -> None:
    no_card(patch)
    patch.setenv("CUDA_VISIBLE_DEVICES", "7")


def unwell(patch: pytest.MonkeyPatch) -> None:
    no_card(patch)
    patch.setattr(torch.cuda, "is_available", lambda: bool(warnings.warn("CUDA unknown error\n 999", stacklevel=1)))


def unwell_and_chosen(patch: pytest.MonkeyPatch) -> None:
    unwell(patch)
    patch.setenv("CUDA_VISIBLE_DEVICES", "0")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (older_than_the_wheel, r"has no code for An Old Card, which has compute capability 6\.1 .*install a build"),
        (build_for_cpus, r"is a build for CPUs, and here is A Card; install the build for CUDA"),
        (old_driver, r"the driver 535\.1 of A Card is for CUDA 12, PyTorch needs 13\.0; install a newer driver"),
        (hidden, r"CUDA_VISIBLE_DEVICES=7 hides A Card; unset"),
        (unwell_and_chosen, r"cannot use A Card \(CUDA unknown error 999\)"),
        (unwell, r"cannot use A Card \(CUDA unknown error 999\); see whether `nvidia-smi`"),
    ],
)
def test_a_card_that_pytorch_cannot_use_is_told_in_a_line_and_refused_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: Callable[..., None], said: str
) -> None:
    trouble(monkeypatch)
    assert pick_device("cpu") == CPU
    assert capsys.readouterr().err == ""
    assert pick_device("auto") == CPU
    line = capsys.readouterr().err
    assert re.search(f"^training on the CPU: .*{said}", line)
    assert line.count("\n") == 1
    with told(capsys, f"train.device: cuda, but .*{said}.* set it to auto or cpu$"):
        pick_device("cuda")


def test_without_a_card_auto_takes_the_cpu_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Driver:
        raise NoDriverError("no library")

    no_card(monkeypatch)
    for ask in (none, lambda: Driver("580.95", 13, ())):
        monkeypatch.setattr(device, "ask_driver", ask)
        assert pick_device("auto") == CPU
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), WHEEL, True), ((7, 0), WHEEL, False), ((12, 1), WHEEL, True), ((11, 0), WHEEL, False),
        ((13, 0), WHEEL, False), ((13, 0), [*WHEEL, "compute_120"], True), ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False), ((10, 3), ["sm_100f"], True), ((9, 0), [], True),
    ],
)  # fmt: skip
def test_code_runs_on_its_generation_and_what_is_compiled_late_on_later_ones(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    with_card(monkeypatch, capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    assert pick_device("auto").type == ("cuda" if runs else "cpu")


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_precisions_that_a_card_lacks_are_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    with_card(monkeypatch, (7, 5), "A Turing")
    set_precision("fp32", CUDA)
    with told(capsys, rf"{precision} needs a card of compute capability 8\.0, and A Turing has 7\.5"):
        set_precision(precision, CUDA)
    with_card(monkeypatch, (8, 0))
    set_precision(precision, CUDA)
    set_precision("fp32", CPU)


def test_of_inductors_warnings_only_the_advice_of_tf32_is_silenced() -> None:
    advice, module = (
        "TensorFloat32 tensor cores for float32 matrix multiplication available",
        "torch._inductor.compile_fx",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_precision("fp32", CUDA)
        warnings.warn_explicit(advice, UserWarning, "compile_fx.py", 1, module)
        for text, where in (("another", module), (advice, "elsewhere")):
            with pytest.raises(UserWarning):
                warnings.warn_explicit(text, UserWarning, "compile_fx.py", 1, where)


@pytest.mark.parametrize("lost", ["card", "triton", "C compiler", "headers"])
def test_what_compiling_for_a_card_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    model_params: Callable[..., ModelParams], train_params: Callable[..., TrainParams], lost: str,
) -> None:  # fmt: skip
    with_card(monkeypatch, (6, 0) if lost == "card" else (9, 0))
    (tmp_path / "Python.h").touch()
    compiler = tmp_path / "gcc"
    compiler.touch()
    compiler.chmod(0o755)
    monkeypatch.setattr(inductor, "find_spec", lambda _: lost != "triton" or None)
    monkeypatch.setenv("CC", str(tmp_path / ("none" if lost == "C compiler" else "gcc")))
    monkeypatch.setattr(inductor.sysconfig, "get_path", lambda _: str(tmp_path / ("no" if lost == "headers" else "")))
    with told(capsys, f"train.engine: compiled needs .*{lost}.*graph or eager"):
        choose_engine(model_params(), train_params(engine="compiled"), 100, CUDA)
    assert choose_engine(model_params(), train_params(engine="auto", epochs=500_000), 100, CUDA).compiles is False
    monkeypatch.setattr(inductor, "lacking", lambda: None)
    assert choose_engine(model_params(), train_params(engine="compiled"), 100, CUDA).compiles


def test_on_windows_triton_brings_its_compiler_and_is_a_package_of_another_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_card(monkeypatch)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", "none")
    monkeypatch.setattr(inductor.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(inductor, "find_spec", lambda _: True)
    monkeypatch.setattr(inductor, "sys", SimpleNamespace(platform="linux"))
    assert "a C compiler" in str(inductor.lacking())
    monkeypatch.setattr(inductor, "sys", SimpleNamespace(platform="win32"))
    assert inductor.lacking() is None
    monkeypatch.setattr("sys.platform", "win32")
    assert "install triton-windows" in run_path(inductor.__file__)["INSTALLING_TRITON"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. Including non-PyTorch memory, x"),
         r"memory is full \(CUDA out of memory\. Tried to allocate 2 GiB\.\); set train.device: cpu"),
        (torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable\nadvice"),
         "busy, or another process has it for itself"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory is full"),
    ],
)  # fmt: skip
def test_what_a_card_refuses_ends_the_process_with_a_line_and_status_1(
    capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    with told(capsys, said), card_errors():
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), torch.AcceleratorError("CUDA error: illegal address")]
)
def test_a_mistake_of_the_code_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), card_errors():
        raise error


class Graph:
    """A capture that raises once more when it ends, as a real one does after a failure."""

    def __init__(self, *_: object, **__: object) -> None:
        self.replay = lambda: None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        if kind:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class Stream:
    def wait_stream(self, _: object) -> None:
        pass


@pytest.fixture
def _capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "get_rng_state": torch.get_rng_state, "set_rng_state": torch.set_rng_state, "Stream": Stream,
        "current_stream": Stream, "stream": nullcontext, "CUDAGraph": Graph, "graph": Graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.usefixtures("_capturing")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"graph failed: the card's memory is full \(CUDA out"),
        (RuntimeError("Cannot copy between CPU and CUDA tensors"), "graph failed: Cannot copy"),
    ],
)
def test_a_capture_that_fails_names_its_first_cause_and_the_setting_that_avoids_it(
    capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def fail() -> Tensor:
        raise error

    with told(capsys, f"{said}.*set train.engine: eager, .* or train.device: cpu"):
        cuda_graph.record(fail, lambda: None, [])
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(CardError, match=r"memory is full.*set train\.engine: eager"):
            cuda_graph.record(lambda: torch.zeros(1), fail, [])
    else:
        with pytest.raises(RuntimeError, match="Cannot copy"):
            cuda_graph.record(lambda: torch.zeros(1), fail, [])


@pytest.mark.usefixtures("_capturing")
def test_a_recording_starts_from_the_state_before_the_warm_up() -> None:
    weight, warm_ups = torch.zeros(1), []
    _, result = cuda_graph.record(lambda: weight + 1, lambda: warm_ups.append(weight.add_(5)), [weight])
    assert result.item() == 1
    assert len(warm_ups) == cuda_graph.WARM_UPS


def test_a_checkpoint_of_one_card_or_one_of_its_libraries_is_not_anothers(
    monkeypatch: pytest.MonkeyPatch, params: Params, repository: Path
) -> None:
    monkeypatch.chdir(repository)
    facts = {"card": "A Card", "capability": "9.0", "cuda": "13.0", "cudnn": "91000", "triton": "3.8.0"}
    choice, keys = EngineChoice("eager", False, ""), set()
    for changes in ({}, *({name: "another"} for name in facts)):
        monkeypatch.setattr(checkpoint, "card_facts", lambda _, changes=changes: facts | changes)
        keys.add(checkpoint.result_key(params, Path("dvc.yaml"), CUDA, choice))
    assert len(keys) == 6
    with_card(monkeypatch)
    assert set(card_facts(CUDA)) == set(facts)
    assert card_facts(CPU) == {}


@pytest.mark.parametrize(
    ("steps", "each"), [(275, 25), (300, 50), (600, 50), (468, 39), (550, 50), (467, 47), (7, 7), (0, 1)]
)
def test_launches_are_equal_where_they_can_be_so_that_one_is_recorded(steps: int, each: int) -> None:
    assert steps_a_launch(steps) == each


@pytest.mark.parametrize(("images", "sizes"), [(40, [10]), (43, [10, 3]), (3, [3]), (10, [10])])
def test_a_warm_up_is_a_step_and_the_last_smaller_one(images: int, sizes: list[int]) -> None:
    seen = []
    order = torch.arange(images)
    brief_steps(lambda order, *_: seen.append(len(order)), 10, *[order] * 6, torch.zeros(-(-images // 10)))
    assert seen == sizes


def test_engines_and_replicas_warm_up_by_those_steps_alone(
    monkeypatch: pytest.MonkeyPatch, model_params: Callable[..., ModelParams],
    train_params: Callable[..., TrainParams], splits: Splits,
) -> None:  # fmt: skip
    seen: list[int] = []
    warmed: list[list[int]] = []

    def watched(loss_of: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *parts: seen.append(len(parts[3])) or loss_of(*parts)

    def recorder(function: Callable[[], Tensor], warm_up: Callable[[], object], _: object) -> Any:
        seen.clear()
        warm_up()
        warmed.append(seen[:])
        return (lambda: None), function()

    monkeypatch.setattr(engine_module, "batch_loss", watched(engine_module.batch_loss))
    monkeypatch.setattr(replicas, "stack_loss", watched(replicas.stack_loss))
    params, choice = train_params(epochs=1, batch_size=10), EngineChoice("graph", False, "")
    assert len(splits.train) == 32
    model = make_model(model_params(), 0, CPU)
    engine = Engine(choice, model, splits, params, recorder)
    engine.train_epoch(draw_plan(32, params.augmentation, torch.Generator()), [0.1] * 4)
    assert warmed == [[10], [2]], "a launch of three steps, and one of the last, smaller one"
    list(replicas.replica_epochs(model_params(), splits, params, [1, 2], choice, recorder))
    assert warmed[2:4] == [[10], [2]]


def test_a_launch_takes_its_plan_and_rates_from_the_device(params: Params) -> None:
    devices = []

    def steps(*launch: Tensor) -> Tensor:
        devices.extend(part.device.type for part in launch)
        return torch.zeros(2, len(launch[-1]))

    plan = draw_plan(20, params.train.augmentation, torch.Generator())
    run_launches(steps, plan, [0.1] * 2, 10, torch.device("meta"))
    assert devices == ["meta"] * 7


def test_adamw_can_be_captured(monkeypatch: pytest.MonkeyPatch, train_params: Callable[..., TrainParams]) -> None:
    monkeypatch.setattr(recipe, "_create_state", lambda *_: None)  # it would compute
    with FakeTensorMode():
        weights = [nn.Parameter(torch.empty(2, device=CUDA))]
        (group,) = make_optimizer(weights, train_params(optimizer="adamw")).param_groups
    assert group["capturable"], "PyTorch refuses to capture its step otherwise"
    assert group["lr"].device.type == "cuda"


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_images_times_replicas_are_measured_at_once(
    monkeypatch: pytest.MonkeyPatch, model_params: Callable[..., ModelParams],
    random_split: Callable[[int, int], Split], count: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(replicas, "MEASURED_AT_ONCE", 12)
    stack = replicas.Stack([make_model(model_params(), seed, CPU) for seed in range(count)])
    sizes: list[Any] = []
    stack.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    replicas.stack_counts(stack, [random_split(24, 0)])
    assert sizes == [12 // count] * (2 * count)
