from pathlib import Path

import pytest

from lenet5.params import Params
from lenet5.record.store import Store, connect


@pytest.fixture
def store(workspace: Path, params: Params) -> Store:
    """A new one, in a workspace of its own."""
    (workspace / "params.yaml").write_text("")
    return connect(params)
