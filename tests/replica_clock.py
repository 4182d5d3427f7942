"""Replicas that only let a clock go on, for what times them."""

import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

COMPILING = 30.0


def let_replicas_take(seconds: float, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In ``module`` an epoch takes so long for each replica, and the first of them COMPILING more for all."""
    now = 0.0

    def epochs(_model: Any, _splits: Any, params: Any, seeds: range, _choice: Any) -> Iterator[None]:
        nonlocal now
        now += COMPILING
        for _ in range(params.epochs):
            now += seconds * len(seeds)
            yield

    monkeypatch.setattr(module, "replica_epochs", epochs)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
