"""A training on a worker: each way in which it can come to no end ends the worker, or the search, as it should."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lenet5.data.datasets import Splits
from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.search import work
from lenet5.training.engine import EngineChoice


@pytest.fixture
def content(params: Params) -> Mapping[str, Any]:
    return params.model_dump(mode="json", by_alias=True)


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("place", ["load_without_test", "make_model", "Training", "epochs"])
def test_a_card_that_is_full_ends_the_worker_wherever_it_says_so(
    monkeypatch: pytest.MonkeyPatch, content: Mapping[str, Any], splits: Splits, place: str
) -> None:
    if place != "load_without_test":  # the first thing on the card, within what `prepare` does
        monkeypatch.setattr(work, "prepare", lambda *_: (splits, EngineChoice("eager", False, "")))
    if place == "epochs":
        monkeypatch.setattr(work, "Training", lambda *_: SimpleNamespace(epochs=full))
    else:
        monkeypatch.setattr(work, place, full)
    with pytest.raises(SystemExit, match="the card's memory is full"):
        list(work.train(Path(), None, content))


def test_what_a_person_can_mend_ends_the_search_and_not_the_worker(tmp_path: Path, content: Mapping[str, Any]) -> None:
    with pytest.raises(UserError, match="not found; `dvc repro download`"):
        list(work.train(tmp_path, None, content))
