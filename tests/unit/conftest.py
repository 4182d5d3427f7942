from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from lenet5.datasets import Split, Splits
from lenet5.params import ModelParams, Params, TrainParams

# Derandomized: what fails here fails everywhere.
settings.register_profile("unit", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile("unit")

# Not read from params.yaml: a person may set anything there, and the tests must still pass.
CONTENT: dict[str, Any] = {
    "download": {"sources": ["https://example.org/data/"], "local_dir": None, "timeout": 10},
    "kernel_check": {"seeds": [0, 1], "lr": 0.03, "max_steps": 1000, "tolerance": 1e-3},
    "data": {"validation_size": 10, "train_sample": 10, "split_seed": 0},
    "model": {"activation": "relu", "pooling": "avg", "c3": "full", "dropout": 0.0},
    "train": {
        "epochs": 3,
        "batch_size": 10,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "augmentation": {"horizontal_flip": False, "shift": 0},
        "patience": 0,
        "weights": "best_validation",
        "seed": 0,
        "deterministic": True,
        "device": "cpu",
        "engine": "eager",
        "precision": "fp32",
    },
    "evaluate": {"confidence": 0.95, "calibration_bins": 15},
    "export": {"opset": 20, "tolerance": 1e-4},
    "register": {
        "experiment": "an-experiment",
        "model_name": "a-model",
        "min_test_accuracy": 0.5,
        "max_accuracy_gap": 0.05,
        "alpha": 0.05,
        "system_metrics": False,
    },
}


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are too small for more
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def content() -> dict[str, Any]:
    return deepcopy(CONTENT)


@pytest.fixture(scope="session")
def params() -> Params:
    return Params.model_validate(CONTENT)


@pytest.fixture(scope="session")
def model_params() -> Callable[..., ModelParams]:
    return lambda **changes: ModelParams.model_validate(CONTENT["model"] | changes)


@pytest.fixture(scope="session")
def train_params() -> Callable[..., TrainParams]:
    return lambda **changes: TrainParams.model_validate(CONTENT["train"] | changes)


@pytest.fixture(scope="session")
def random_split() -> Callable[[int, int], Split]:
    def make(size: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (size, 28, 28), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, 10, (size,), generator=generator))

    return make


@pytest.fixture(scope="session")
def splits(random_split: Callable[[int, int], Split]) -> Splits:
    train = random_split(32, 1)
    return Splits(train, train.take(torch.arange(16)), validation=random_split(12, 2), test=random_split(14, 3))
