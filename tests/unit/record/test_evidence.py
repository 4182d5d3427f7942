import json
from dataclasses import fields
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lenet5.errors import UserError
from lenet5.record.evidence import log_files, read_evidence
from lenet5.record.store import Store
from lenet5.results.history import EpochRow


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


@pytest.mark.parametrize("damaged", ["about.json", "evaluation.json", "predictions.csv", "history.csv"])
def test_damaged_evidence_is_told_by_whose_it_is(store: Store, tmp_path: Path, damaged: str) -> None:
    store.client.create_registered_model("shoes")
    model = str(store.client.create_logged_model(store.experiment_id, "onnx").model_id)
    version = store.client.create_model_version("shoes", f"models:/{model}", model_id=model)
    kept, downloaded = tmp_path / "kept", tmp_path / "downloaded"
    kept.mkdir()
    downloaded.mkdir()
    about = {"run_name": "calm-owl", "run_id": "0123456789", "params": {}, "data_digest": ""}
    for name, content in {
        "about.json": json.dumps(about),
        "evaluation.json": "{}",
        "predictions.csv": "true,predicted\nbag,bag\n",
        "history.csv": ",".join(field.name for field in fields(EpochRow)),
    }.items():
        (kept / name).write_text(content)
    log_files(store.client, model, kept, "about.json", "evidence")
    whole = read_evidence(store.client, store.uri, version, downloaded)
    assert whole is not None
    assert whole.name == "calm-owl (01234567)"

    for damage in ("", "cut", '{"run_name": "calm-owl"'):
        (kept / damaged).write_text(damage)
        store.client.log_model_artifact(model, str(kept / damaged), "evidence")
        with pytest.raises(UserError, match="model version 1 of shoes keeps damaged files") as told:
            read_evidence(store.client, store.uri, version, downloaded)
        assert str(downloaded) not in str(told.value)
