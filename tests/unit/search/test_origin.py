from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.search import origin
from lenet5.search.origin import differences, origin_of, unchanged_code
from lenet5.search.plan import Plan

from .conftest import SPACE


@pytest.fixture
def pipeline(workspace: Path) -> Path:
    (workspace / "src").mkdir()
    (workspace / "src/code.py").write_text("1")
    (workspace / "dvc.yaml").write_text("stages: {train: {cmd: python, deps: [src/code.py]}}")
    return Path("dvc.yaml")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"trials": 9, "workers": 1}, []),
        ({"objective": "validation_accuracy"}, ["objective was validation_loss, is validation_accuracy"]),
        ({"prune": False}, ["prune was after=0.25, is False"]),
        ({"space": {**SPACE, "model.activation": ["relu"]}},
         ["space of model.activation was ['relu', 'tanh'], is ['relu']"]),
        ({"fixed": {"train.epochs": 9}}, ["train.epochs was 8, is 9"]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_differs_of_the_plan_is_told(
    plan: Callable[..., Plan], base: Params, pipeline: Path, change: dict[str, Any], told: list[str]
) -> None:
    assert differences(origin_of(plan(), base, pipeline), origin_of(plan(**change), base, pipeline)) == told


def test_other_params_code_data_and_libraries_are_told(
    plan: Callable[..., Plan], base: Params, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = origin_of(plan(), base, pipeline)
    other = base.model_copy(update={"train": base.train.model_copy(update={"seed": 7})})
    (pipeline.parent / "src/code.py").write_text("2")
    monkeypatch.setattr(origin, "data_digest", lambda: "other images")
    monkeypatch.setattr(origin, "version", lambda _: "3.0")
    told = differences(before, origin_of(plan(), other, pipeline))
    assert [one.partition(" was ")[0] for one in told] == ["train.seed", "src/code.py", "FashionMNIST", "PyTorch"]
    assert told[0] == f"train.seed was {base.train.seed}, is 7"
    assert told[1] == "src/code.py was changed"


def test_code_that_changes_while_something_goes_on_is_told(pipeline: Path) -> None:
    check = unchanged_code(pipeline)
    check()
    Path("src/code.py").write_text("2")
    with pytest.raises(UserError, match=r"^src/code\.py was changed while this went on"):
        check()
    Path("src/code.py").write_text("1")
    check()
