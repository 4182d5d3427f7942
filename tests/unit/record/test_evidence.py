from pathlib import Path

import pytest
from mlflow import MlflowClient

from lenet5.record.evidence import log_files
from lenet5.record.store import Store


def test_the_file_that_says_that_all_are_there_comes_last(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(store.client.create_logged_model(store.experiment_id, "onnx").model_id)

    def files() -> set[str]:
        return {item.path for item in store.client.list_logged_model_artifacts(model, "evidence")}

    def folder(name: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        for file in ("about.json", "history.csv"):
            (place / file).write_text(name)
        return place

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_model_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            log_files(store.client, model, folder("first"), "about.json", "evidence")
    assert files() == {"evidence/history.csv"}
    log_files(store.client, model, folder("second"), "about.json", "evidence")
    assert files() == {"evidence/about.json", "evidence/history.csv"}
