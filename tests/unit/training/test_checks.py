import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

import pynvml
import pytest
import torch

from lenet5.findings import Finding
from lenet5.training import checks
from tests.unit.conftest import only

pytestmark = pytest.mark.usefixtures("workspace")


def with_driver(monkeypatch: pytest.MonkeyPatch, cuda: int, gpus: int) -> None:
    answers = {
        "nvmlInit": None, "nvmlShutdown": None, "nvmlSystemGetDriverVersion": "580.95",
        "nvmlSystemGetCudaDriverVersion_v2": cuda, "nvmlDeviceGetCount": gpus, "nvmlDeviceGetHandleByIndex": None,
        "nvmlDeviceGetName": "A GPU",
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(checks, "installed", lambda _: "13.0.3.0")
    monkeypatch.setattr(checks, "call", lambda *_: "\n")


@pytest.mark.parametrize(
    ("cuda", "gpus", "level", "said"),
    [
        (13000, 2, "ok", "A GPU, A GPU; driver 580.95, CUDA 13"),
        (12040, 1, "problem", "install a newer driver"),
        (13010, 0, "note", "no GPU"),
    ],
)
def test_a_driver_too_old_for_pytorch_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, cuda: int, gpus: int, level: str, said: str
) -> None:
    with_driver(monkeypatch, cuda, gpus)
    finding = only(checks.check_cuda)
    assert finding.level == level
    assert said in finding.text


def test_a_card_that_pytorch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, 13000, 1)
    monkeypatch.setattr(checks, "call", lambda *_: "PyTorch has no code for A GPU; install a build that has\n")
    assert only(checks.check_cuda) == Finding(
        "problem", "cuda", "PyTorch has no code for A GPU; install a build that has"
    )


def test_a_pytorch_that_does_not_start_is_a_problem_where_there_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, 13000, 1)
    monkeypatch.setattr(checks, "call", lambda *_: None)
    said = "PyTorch does not start here; `python -c 'import torch'` says why"
    assert only(checks.check_cuda) == Finding("problem", "cuda", said)


def test_whether_pytorch_can_use_a_card_is_asked_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(*command: str) -> str:
        run_path(str(find_spec(command[-1]).origin), run_name="__main__")  # type: ignore[union-attr]
        return capsys.readouterr().out

    with_driver(monkeypatch, 13000, 1)
    monkeypatch.setattr(checks, "call", here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = only(checks.check_cuda)
    assert finding.level == "problem"
    assert "is a build for CPUs, and here is A GPU; install the build for CUDA" in finding.text


def test_no_driver_is_a_problem_only_where_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert only(checks.check_cuda).level == "note"
    monkeypatch.setattr(checks, "_device_wished", lambda: "cuda")
    finding = only(checks.check_cuda)
    assert finding.level == "problem"
    assert "set it to auto" in finding.text


def test_a_driver_without_a_gpu_is_a_problem_where_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, 13000, 0)
    monkeypatch.setattr(checks, "_device_wished", lambda: "cuda")
    assert only(checks.check_cuda).level == "problem"


def test_without_the_package_that_asks_the_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    assert "nvidia-ml-py is missing" in only(checks.check_cuda).text


def test_a_card_for_which_nothing_can_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, 13000, 1)
    lacks = "Python's headers (python3-dev, say)"
    monkeypatch.setattr(checks, "call", lambda *command: f"{lacks}\n" if "inductor" in command[-1] else "\n")
    usable, note = checks.check_cuda()
    assert (usable.level, note.level) == ("ok", "note")
    assert note.text == f"steps are not compiled for the card, for want of {lacks}"


def test_where_there_are_no_lanes_nobody_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert list(checks.check_compiler()) == []


def test_without_a_compiler_training_is_slower(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setenv("PATH", str(workspace))
    finding = only(checks.check_compiler)
    assert finding.level == "note"
    assert "training on a CPU is less than a third as fast" in finding.text


def test_a_compiler_that_builds_nothing_is_told_with_its_own_word(
    monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    compiler = workspace / "clang++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && echo clang 19 || { echo cannot find -lomp >&2; exit 1; }\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    finding = only(checks.check_compiler)
    assert (finding.level, "failed: cannot find -lomp; training" in finding.text) == ("note", True), finding
    monkeypatch.setenv("CXX", "g++ -mno-avx2 -mno-avx512f")
    if platform.machine() == "x86_64":  # as on a CPU without: training says the same
        assert "vector registers too small to hold eight images" in only(checks.check_compiler).text
    monkeypatch.setenv("CXX", str(compiler))
    compiler.write_text("#!/bin/sh\n")
    assert "does not run" in only(checks.check_compiler).text
