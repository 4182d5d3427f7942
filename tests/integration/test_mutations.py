"""Params files with mistakes in them, and files of the pipeline with damage: refused in one line, never used."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lenet5.data.fashion_mnist import RAW_DIR

from .conftest import FAULT_SEED, TRACEBACK, Project

Report = Callable[[str], None]


def garble_params(content: dict[str, Any], dice: random.Random) -> str:
    """A params.yaml with one edit a person could make in error."""
    section = dice.choice(list(content))
    key = dice.choice(list(content[section]))
    values = [
        None,
        True,
        -1,
        0,
        1,
        2.5,
        1e30,
        float("nan"),
        "",
        "auto",
        "relu",
        [],
        {},
        [1],
        {"a": 1},
        "1e-3",
        "é\u0000",
    ]
    edit = dice.randrange(8)
    if edit == 0:
        del content[section][key]
    elif edit == 1:
        content[section][key + dice.choice("sx_ ")] = content[section].pop(key)
    elif edit == 2:
        content[section] = dice.choice(values)
    elif edit == 3:
        del content[section]
    elif edit == 4:
        content[dice.choice(["trian", 1, None, "lr"])] = content.pop(section)
    elif edit == 5:
        text = yaml.safe_dump(content)
        place = dice.randrange(len(text))
        return text[:place] + dice.choice("{}[]:,&*!|>'\"%@`\t\n-#\\\x00\x07é") + text[place + dice.randrange(3) :]
    else:
        content[section][key] = dice.choice(values)
    return yaml.safe_dump(content)


def test_garbled_params_run_or_are_refused_in_one_line(
    pristine: Project, tmp_path: Path, dice: random.Random, report: Report
) -> None:
    project = pristine.copy(tmp_path / "project")
    good = project.params()
    (project.path / "stages/nothing.py").write_text(NOTHING)
    refused = 0
    for _ in range(500):
        text = garble_params(json.loads(json.dumps(good)), dice)
        (project.path / "params.yaml").write_text(text)
        done = project.stage("nothing", check=False)
        assert TRACEBACK not in done.stderr, text
        assert done.returncode in (0, 1), text
        if done.returncode:
            refused += 1
            assert len(done.stderr.splitlines()) == 1, done.stderr
    report(
        f"500 garbled params files: {refused} refused in one line, {500 - refused} good by chance, 0 tracebacks "
        f"(FAULT_SEED={FAULT_SEED})"
    )
    assert refused > 250


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The content cut, or with some bytes changed, or with bytes put in."""
    place = dice.randrange(len(content))
    kind = dice.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + dice.randbytes(dice.randrange(1, 64)) + content[place:]
    if kind == 2:
        return dice.randbytes(dice.randrange(64))
    changed = bytearray(content)
    changed[place] ^= 1 << dice.randrange(8)
    return bytes(changed)


def test_damaged_files_are_never_used(pristine: Project, tmp_path: Path, dice: random.Random, report: Report) -> None:
    """A script that reads each kind of file as the stages do, without what follows."""
    project = pristine.copy(tmp_path / "project")
    (project.path / "stages/read.py").write_text(READ)
    kinds = {
        "data": RAW_DIR / "t10k-labels-idx1-ubyte",
        "weights": Path("models/lenet5.pth"),
        "onnx": Path("models/lenet5.onnx"),
        "checkpoint": Path(".lenet5/checkpoints/" + "k" * 32 + ".pt"),
    }
    project.stage("read", READ="save")
    for kind, path in kinds.items():
        whole = (project.path / path).read_bytes()
        project.stage("read", READ=kind)
        for _ in range(500 // len(kinds)):
            (project.path / path).write_bytes(damaged(whole, dice))
            done = project.stage("read", check=False, READ=kind)
            assert done.returncode == 1
            assert TRACEBACK not in done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
        (project.path / path).write_bytes(whole)
    report(f"500 damaged data, weights, ONNX and checkpoint files: 0 used, 0 tracebacks (FAULT_SEED={FAULT_SEED})")


NOTHING = """
from lenet5.stage import run_stage

run_stage("nothing", lambda params: None)
"""

READ = """
import os, sys
from pathlib import Path
import torch
from lenet5.training.checkpoint import Checkpoint
from lenet5.data.datasets import load_test
from lenet5.results.evaluation import load_weights
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.files import read_json
from lenet5.outs import TRAINING, WEIGHTS
from lenet5.record.result import read_result
from lenet5.stage import run_stage
import lenet5.training.checkpoint

def main(params):
    checkpoint = Checkpoint(Path(".lenet5/checkpoints"), "k" * 64)
    kind = os.environ["READ"]
    if kind == "save":
        lenet5.training.checkpoint.EVERY_SECONDS = 0
        checkpoint.save_if_due(lambda: {"model": {"weight": torch.ones(1000)}})
    elif kind == "data":
        load_test(RAW_DIR)
    elif kind == "weights":
        load_weights(WEIGHTS, read_json(TRAINING)["weights_sha256"], params.model)
    elif kind == "onnx":
        read_result(params)
    elif checkpoint.load() is None:
        sys.exit(1)

run_stage("read", main)
"""
