from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenet5.params import Params
from lenet5.search.plan import Plan
from lenet5.search.study import Study, open_study
from tests.params import CONTENT

SPACE: dict[str, Any] = {"train.lr": {"low": 0.001, "high": 0.1, "log": True}, "model.activation": ["relu", "tanh"]}


@pytest.fixture
def plan() -> Callable[..., Plan]:
    def make(**changes: Any) -> Plan:
        content = {
            "trials": 4, "workers": 2, "objective": "validation_loss", "prune": {"after": 0.25},
            "fixed": {"train.epochs": 8}, "space": SPACE,
        }  # fmt: skip
        return Plan.model_validate(content | changes)

    return make


@pytest.fixture
def base() -> Params:
    return Params.model_validate(CONTENT)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "sweeps/wide.journal"


@pytest.fixture
def search(journal: Path, plan: Callable[..., Plan]) -> Callable[..., Study]:
    """Opens the same journal, as another process would."""

    def begin(**changes: Any) -> Study:
        study = open_study(journal, "wide", plan(**changes))
        study.begin({"code": "1"})
        return study

    return begin


def row(epoch: int, loss: float, accuracy: float = 0.5) -> dict[str, Any]:
    names = ("running_loss", "running_accuracy", "train_loss", "train_accuracy", "gap_loss", "gap_accuracy")
    return {
        "epoch": epoch, "learning_rate": 0.1, **dict.fromkeys(names, 0.5), "validation_loss": loss,
        "validation_accuracy": accuracy, "test_loss": None, "test_accuracy": None,
    }  # fmt: skip
