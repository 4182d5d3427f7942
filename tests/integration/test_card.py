"""A card that cannot go on, before and in the middle of a training, and what is recorded of it."""

from unittest.mock import patch

import pytest
import torch

from lenet5.params import load_params
from lenet5.training.device import pick_device

from .conftest import TRACEBACK, Project


def replace(project: Project, name: str, old: str, new: str) -> None:
    path = project.path / "src/lenet5" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_full_card_ends_train_with_a_line_a_failed_run_and_the_earlier_outs(pipeline_copy: Project) -> None:
    outs = [pipeline_copy.path / name for name in ("models/lenet5.pth", "plots/history.csv", "metrics/training.json")]
    before = [out.read_bytes() for out in outs]
    step = "        result = self._engine.train_epoch(plan, rates)\n"
    error = "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')"
    full = f"        if epoch > 1:\n            raise {error}\n"
    replace(pipeline_copy, "training/loop.py", step, full + step)
    no_facts = 'if device.type != "cuda":\n        return {}\n'
    facts = 'if device.type != "cuda":\n        return {"card": "A Card", "cudnn": "91000"}\n'
    replace(pipeline_copy, "training/device.py", no_facts, facts)
    done = pipeline_copy.run("dvc", "repro", "train", check=False)
    assert done.returncode != 0
    assert TRACEBACK not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert "the card's memory is full (CUDA out of memory. Tried to allocate 2 GiB.); set train.device: cpu" in line
    assert [out.read_bytes() for out in outs] == before
    failed = pipeline_copy.runs()[-1]
    assert failed.info.status == "FAILED"
    assert "the card's memory is full" in failed.data.tags["failure"]
    assert failed.data.tags["device.card"] == "A Card"
    assert failed.data.tags["device.cudnn"] == "91000"


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        (
            "data/datasets.py",
            "    return replace(load_without_test(raw_dir, params, device), test=load_test(raw_dir).to(",
        ),
        ("training/loop.py", "    return LeNet5(params).to("),
    ],
    ids=["for the images", "for the weights"],
)
def test_a_busy_card_ends_train_with_a_line_before_there_is_a_run(project: Project, name: str, asks: str) -> None:
    project.link_data()
    put = "    raise torch.AcceleratorError('CUDA error: all CUDA-capable devices are busy or unavailable')\n"
    replace(project, name, asks, put + asks)
    done = project.stage("train", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("train: training on the card failed: the card is busy, or another process has it")
    assert "set train.device: cpu" in line
    assert project.runs() == []


def test_no_training_of_a_test_takes_a_card_that_is_there(project: Project) -> None:
    device = load_params(project.path / "params.yaml").train.device
    with (
        patch.object(torch.cuda, "is_available", return_value=True),
        patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        patch.object(torch.cuda, "get_arch_list", return_value=["sm_90"]),
    ):
        assert pick_device("auto").type == "cuda"
        assert pick_device(device).type == "cpu"
