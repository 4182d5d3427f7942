"""What the script of the first minutes asks, in what time, and what its figures mean."""

from typing import Any

import pytest
import torch

import correctness
import gpu
from tests.replica_clock import let_replicas_take

SMALL = gpu.Setting("cpu", small=True)


def test_the_script_takes_ten_minutes_at_most_and_asks_first_whether_training_is_right() -> None:
    assert sum(part.limit for part in gpu.PARTS) <= 600
    assert [part.name for part in gpu.PARTS] == [
        "machine", "correctness", "speed", "tutorial", "profile", "evaluation", "replicas", "accuracy", "full memory",
        "savings",
    ]  # fmt: skip


def test_what_is_compared_computes_in_fp32_whatever_was_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    correctness.start(correctness.RECIPES["the tutorial's"], correctness.EAGER, torch.device("cpu"))
    assert not torch.backends.cudnn.allow_tf32


def test_a_replicas_epoch_is_timed_without_the_first_which_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    let_replicas_take(0.5, gpu, monkeypatch)
    figures = dict(gpu.replicas(SMALL))
    assert [figures[f"{count}, ms a replica's epoch"] for count in (1, 2)] == pytest.approx([500, 500])


def test_targets_are_held_against_what_was_found_and_a_part_that_failed_costs_its_own_alone() -> None:
    found: dict[str, dict[str, Any]] = {
        "speed": {"eager": {"ms_an_epoch": 400.0}, "graph": {"ms_an_epoch": 20.0}}, "tutorial": {"ms_an_epoch": 1000.0},
        "accuracy": {gpu.SECONDS_OF_1000: 33.0}, "replicas": {"32, ms a replica's epoch": 9.0},
    }  # fmt: skip
    assert list(gpu.targets(found).values()) == [20.0, 50.0, 33.0, 9.0]
    assert list(gpu.targets(found | {"tutorial": {}, "replicas": {}}).values()) == [20.0, 33.0]
    assert gpu.targets({part: {} for part in found}) == {}
