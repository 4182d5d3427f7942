"""A result carried to another record as one file, and what verify says of records that were damaged."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lenet5.record.evidence import models_of

from .conftest import Project
from .test_record import NAME, as_if_trained
from .test_registry import Lenet5, delete_for_good


@pytest.fixture
def lenet5(pipeline_copy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lenet5:
    return Lenet5(pipeline_copy, monkeypatch, capsys)


def goes_away(*_: object) -> None:
    raise MlflowException("no route to the server")


def test_a_result_goes_whole_into_another_record_once(
    pipeline_copy: Project, lenet5: Lenet5, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline_copy.edit({"register.alpha": 0.04})  # the other record has settings of its own
    (run,) = pipeline_copy.runs()
    file = tmp_path / "a result.zip"
    assert f"{run.info.run_name} is in {file}" in lenet5("record", "pack", run.info.run_name, str(file))
    before = lenet5("compare", run.info.run_id, "workspace")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(file.read_bytes()[:-1000])
    for name, said in ((damaged, "damaged"), (tmp_path / "none.zip", "no such file"), (tmp_path, "not a file that")):
        assert said in lenet5.refused("record", "take", str(name))
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_terminated", goes_away)
        assert "the same command takes it up again" in lenet5.refused("record", "take", str(file))
    assert "version 2 of lenet5-fashionmnist, without an alias" in lenet5("record", "take", str(file))
    assert "is here already" in lenet5("record", "take", str(file))
    (taken,) = pipeline_copy.runs(other)
    client, there = pipeline_copy.mlflow(other), pipeline_copy.mlflow()
    for kind in ("params", "metrics"):
        assert getattr(taken.data, kind) == getattr(run.data, kind)
    for tag in ("result", "mlflow.source.git.commit", "digest.weights", "mlflow.note.content"):
        assert taken.data.tags[tag] == run.data.tags[tag]
    assert (taken.info.status, taken.info.start_time) == ("FINISHED", run.info.start_time)
    assert {one.dataset.digest for one in taken.inputs.dataset_inputs} == {
        one.dataset.digest for one in run.inputs.dataset_inputs
    }
    history = [[(point.step, point.value) for point in one.get_metric_history(each.info.run_id, "loss/validation")]
               for one, each in ((there, run), (client, taken))]  # fmt: skip
    assert history[0] == history[1] != []
    assert client.get_registered_model(NAME).aliases == {}
    assert lenet5("compare", f"models:/{NAME}/2", "workspace") == before
    assert lenet5("compare", taken.info.run_name, "workspace").partition("Params")[2] == before.partition("Params")[2]
    lenet5("champion", "2")
    assert "Ankle boot" in lenet5("predict", "--model", "champion", "docs/img/boot.png")
    assert "nothing is missing" in lenet5("record", "verify")
    assert len(pipeline_copy.runs()) == 1


def test_verify_names_what_is_missing_and_make_record_mends_it(pipeline_copy: Project, lenet5: Lenet5) -> None:
    assert lenet5("record", "verify").startswith("ok")
    client, (run,) = pipeline_copy.mlflow(), pipeline_copy.runs()
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    (artifacts / "plots/predictions.csv").unlink()
    assert "plots/predictions.csv missing" in lenet5.refused("record", "pack", run.info.run_id, "result.zip")
    version = client.get_model_version_by_alias(NAME, "champion")
    (models,) = pipeline_copy.path.glob("mlruns/*/models/*/artifacts")
    shutil.rmtree(models)
    said = lenet5.failed("record", "verify")
    assert f"({run.info.run_id}): plots/predictions.csv missing; `make record`" in said
    assert "version 1: its files are gone; `make record`" in said
    pipeline_copy.stage("register")
    assert lenet5("record", "verify").startswith("ok")
    delete_for_good(client, version)
    assert "version 1: its run or its model was deleted" in lenet5.failed("record", "verify")
    pipeline_copy.stage("register")
    assert "problem" not in lenet5("record", "verify")
    client.delete_registered_model_alias(NAME, "champion")
    assert "nobody is champion" in lenet5("record", "verify")


def test_make_record_brings_the_model_of_a_rejected_result_back(pipeline_copy: Project, lenet5: Lenet5) -> None:
    client, (before,) = pipeline_copy.mlflow(), pipeline_copy.runs()
    as_if_trained(pipeline_copy, 100)
    pipeline_copy.stage("register")
    assert pipeline_copy.json("registration")["became"] == "rejected"
    (run,) = (one for one in pipeline_copy.runs() if one.info.run_id != before.info.run_id)
    (model,) = models_of(client, run.info.experiment_id, run.info.run_id)
    client.delete_logged_model(model.model_id)
    assert "its model missing; `make record`" in lenet5.refused("record", "pack", run.info.run_id, "result.zip")
    assert f"({run.info.run_id}): its model missing" in lenet5.failed("record", "verify")
    pipeline_copy.stage("register")
    assert lenet5("record", "verify").startswith("ok")
    assert run.info.run_name in lenet5("record", "pack", run.info.run_id, "result.zip")
