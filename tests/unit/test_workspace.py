from pathlib import Path

import pytest

from lenet5.workspace import store_uri


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("", "sqlite:////project/mlflow.db"),
        ("sqlite:///mine.db", "sqlite:////project/mine.db"),  # a queued experiment's own folder is deleted
        ("sqlite:////srv/team.db", "sqlite:////srv/team.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql://server/mlflow", "postgresql://server/mlflow"),
    ],
)
def test_every_experiment_finds_the_same_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", "/project")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store_uri() == found
