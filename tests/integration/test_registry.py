"""The registered model through what people do to it: what is deleted, what is below the limits, who is champion."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lenet5.commands.cli import main
from lenet5.record.evidence import model_id_of

from .conftest import Project
from .test_record import NAME, as_if_trained


def delete(client: MlflowClient, version: ModelVersion) -> None:
    client.delete_run(str(version.run_id))


def delete_for_good(client: MlflowClient, version: ModelVersion) -> None:
    delete(client, version)
    client._tracking_client.store._hard_delete_run(version.run_id)  # as `mlflow gc` does


def delete_model(client: MlflowClient, version: ModelVersion) -> None:
    client.delete_logged_model(model_id_of(version))


def champion(project: Project) -> ModelVersion:
    return project.mlflow().get_model_version_by_alias(NAME, "champion")


@pytest.mark.parametrize("deletes", [delete, delete_for_good, delete_model])
def test_a_deleted_run_or_model_comes_back_with_the_record_and_its_version_is_mended(
    pipeline_copy: Project, deletes: Any
) -> None:
    client = pipeline_copy.mlflow()
    (run,) = pipeline_copy.runs()
    before = champion(pipeline_copy)
    client.set_registered_model_alias(NAME, "production", before.version)
    deletes(client, before)
    for _ in range(2):  # the second time changes nothing
        pipeline_copy.stage("register")
        (now,) = pipeline_copy.runs()
        after = champion(pipeline_copy)
        assert after.run_id == now.info.run_id
        assert client.get_logged_model(model_id_of(after)).source_run_id == now.info.run_id
        assert (now.info.run_id == run.info.run_id) == (deletes is not delete_for_good)
        assert after.tags["decision"] == before.tags["decision"]
        expected = 1 if deletes is delete else 2
        assert client.get_registered_model(NAME).aliases == {"champion": expected, "production": expected}
        assert pipeline_copy.json("registration")["version"] == expected
        assert len(client.search_model_versions()) == expected
    if expected == 2:
        assert "version 2 holds the same weights" in client.get_model_version(NAME, "1").description
    compared = pipeline_copy.run("lenet5", "compare", "champion", now.info.run_name)
    assert "Neither is better" in compared.stdout


def test_an_alias_taken_away_by_hand_stays_away_and_is_said_as_it_is(pipeline_copy: Project) -> None:
    assert "version 1: champion, there was no champion" in pipeline_copy.stage("register").stdout
    assert pipeline_copy.json("registration")["alias"] == "champion"
    client = pipeline_copy.mlflow()
    client.delete_registered_model_alias(NAME, "champion")
    client.set_registered_model_alias(NAME, "mine", "1")
    assert "version 1: became champion when registered" in (said := pipeline_copy.stage("register").stdout)
    assert "its alias now: mine" in said
    entry = pipeline_copy.json("registration")
    assert (entry["became"], entry["alias"]) == ("champion", "mine")
    client.delete_registered_model_alias(NAME, "mine")
    assert "its alias now: none" in pipeline_copy.stage("register").stdout
    assert pipeline_copy.json("registration")["alias"] is None
    assert client.get_registered_model(NAME).aliases == {}


def test_what_is_outside_the_limits_is_a_run_without_a_version_until_the_limits_allow_it(
    pipeline_copy: Project,
) -> None:
    client = pipeline_copy.mlflow()
    as_if_trained(pipeline_copy, 1000)
    said = pipeline_copy.stage("register").stdout
    assert "no version, test accuracy 0.1000 is below register.min_test_accuracy 0.5" in said
    assert [one.version for one in client.search_model_versions()] == [1]
    entry = pipeline_copy.json("registration")
    assert (entry["version"], entry["alias"], entry["became"]) == (None, None, "rejected")
    run = pipeline_copy.runs()[-1]
    assert run.info.status == "FINISHED"
    assert "no model version: test accuracy 0.1000" in run.data.tags["mlflow.note.content"]
    card = Path(run.info.artifact_uri.removeprefix("file://"), "reports/model_card.md").read_text()
    assert "rejected: test accuracy 0.1000" in card
    assert "models:/lenet5-fashionmnist/" not in card
    compared = pipeline_copy.run("lenet5", "compare", "champion", run.info.run_id)
    assert "A is better" in compared.stdout
    pipeline_copy.edit({"register.min_test_accuracy": 0.05})
    assert "version 2: challenger" in pipeline_copy.stage("register").stdout
    assert len(pipeline_copy.runs()) == 2


def test_a_version_has_five_tags_at_most_and_none_that_speaks_of_now(pipeline_copy: Project) -> None:
    client = pipeline_copy.mlflow()
    as_if_trained(pipeline_copy, 9000)
    pipeline_copy.stage("register")
    version = champion(pipeline_copy)
    assert version.version == 2
    assert set(version.tags) == {"test_accuracy", "accuracy_gap", "weights_sha256", "decision", "decided"}
    assert json.loads(version.tags["decision"])["became"] == "champion"
    (event,) = [value for key, value in client.get_registered_model(NAME).tags.items() if '"2"' in value]
    assert json.loads(event)["reason"].startswith("right on")


def test_a_training_alone_leaves_a_run_that_has_ended_and_says_what_is_missing(pipeline_copy: Project) -> None:
    pipeline_copy.shrink({"train.epochs": 1})
    pipeline_copy.wait_for_store()
    pipeline_copy.stage("train")
    run = pipeline_copy.runs()[-1]
    assert run.info.status == "FINISHED"
    assert "stage register: `dvc repro`" in run.data.tags["mlflow.note.content"]
    for stage in ("evaluate", "export", "register"):
        pipeline_copy.stage(stage)
    completed = pipeline_copy.runs()[-1]
    assert (completed.info.run_id, completed.info.status) == (run.info.run_id, "FINISHED")
    assert "stage register" not in completed.data.tags["mlflow.note.content"]


class Lenet5:
    """The command `lenet5`, called in this process: it takes longer to start than to run."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("COLUMNS", "150")
        monkeypatch.chdir(project.path)

    def __call__(self, *words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = self._capsys.readouterr()
        assert (ended.value.code, said.err) == (0, "")
        return said.out

    def refused(self, *words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        (line,) = self._capsys.readouterr().err.splitlines()
        assert ended.value.code == 1
        return line

    def failed(self, *words: str) -> str:
        """What it printed before it ended with exit status 1."""
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 1
        return self._capsys.readouterr().out

    def champions(self, *words: str) -> list[list[str]]:
        """The table that `lenet5 champion` shows, newest first: since, version, accuracy, why."""
        said = self("champion", *words)
        return [re.split(r"\s{2,}", line.strip()) for line in said.splitlines() if re.match(r" +[2?]", line)]


@pytest.fixture
def lenet5(pipeline_copy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lenet5:
    return Lenet5(pipeline_copy, monkeypatch, capsys)


def test_champions_have_a_history_and_a_way_back(pipeline_copy: Project, lenet5: Lenet5) -> None:
    client = pipeline_copy.mlflow()
    as_if_trained(pipeline_copy, 9000)
    pipeline_copy.stage("register")
    second, first = lenet5.champions()
    assert (first[1], first[3]) == ("1", "there was no champion, and it is within the limits")
    assert second[1:3] == ["2 *", "0.9000"]
    assert second[3].startswith("right on")
    back, *_ = lenet5.champions("--back", "--reason", "the second knows no boots")
    assert back[1] == "1 *"
    assert back[3].startswith("the second knows no boots (by hand, ")
    assert champion(pipeline_copy).version == 1
    client.set_registered_model_alias(NAME, "champion", "2")
    by_hand, *_ = lenet5.champions()
    assert (by_hand[0], by_hand[1], "no reason on record" in by_hand[3]) == ("?", "2 *", True)
    client.delete_registered_model_alias(NAME, "champion")
    assert "Nobody is champion now" in lenet5("champion")
    chosen, *rest = lenet5.champions("2")
    assert (chosen[1], len(rest)) == ("2 *", 3)
    assert "version=7) not found" in lenet5.refused("champion", "7")
    assert champion(pipeline_copy).version == 2


def test_a_champion_whose_run_is_gone_is_still_compared(pipeline_copy: Project, lenet5: Lenet5) -> None:
    before = lenet5("compare", "champion", "workspace")
    delete_for_good(pipeline_copy.mlflow(), champion(pipeline_copy))
    assert lenet5("compare", "champion", "workspace") == before
    as_if_trained(pipeline_copy, 9000)
    assert "version 2: champion, right on" in pipeline_copy.stage("register").stdout
