from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from lenet5.data.datasets import Split, Splits
from lenet5.findings import Finding
from lenet5.params import ModelParams, Params, TrainParams
from tests.params import CONTENT

# Derandomized: what fails here fails everywhere.
settings.register_profile("unit", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile("unit")


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


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with no store named elsewhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def only(check: Callable[[], Iterator[Finding]]) -> Finding:
    """The one thing that ``check`` finds."""
    (finding,) = check()
    return finding
