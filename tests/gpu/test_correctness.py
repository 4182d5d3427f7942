"""On a card every engine computes what eager does, does so again, and takes up a training where it was left.

Needs torch, numpy, pydantic and pytest alone: ``PYTHONPATH=src python -m pytest tests/gpu``.
"""

import pytest
import torch

from correctness import CHECKS, RECIPES, engines


@pytest.fixture
def card() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device here")
    torch.compiler.reset()  # it compiles for eight models in a process, and then no more
    return torch.device("cuda")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("engine", ["eager", "graph", "compiled", "graph-compiled"])
def test_every_engine_is_right_on_the_card(card: torch.device, engine: str, recipe: str, check: str) -> None:
    found = engines(card)
    if engine not in found:
        pytest.skip("torch.compile lacks what it needs for the card")
    CHECKS[check](RECIPES[recipe], found[engine], card)
