import json
import zipfile
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from lenet5.errors import UserError
from lenet5.outs import CARD, EVALUATION, HISTORY, PREDICTIONS, PROGRAM
from lenet5.params import Params
from lenet5.record import packing
from lenet5.record.packing import pack, take
from lenet5.record.store import DIFF, RESULT, TRAINING, Store
from lenet5.record.verification import verify
from lenet5.workspace import PARAMS_FILE

NEEDED = (EVALUATION, HISTORY, PREDICTIONS, PROGRAM, CARD)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A file as ``pack`` writes it, as far as it is read before anything is recorded."""
    file = tmp_path / "result.zip"
    about = {"format": 1, "name": "a name", "points": [[f"loss/{epoch}", epoch / 7, epoch, 0] for epoch in range(99)]}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("result.json", json.dumps(about))
    return file


def test_one_wrong_bit_anywhere_is_damage_or_changes_nothing(
    packed: Path, tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packed.read_bytes()
    right = packing._unpack(packed, tmp_path / "right")

    def came_so_far(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(packing, "connect", came_so_far)
    damaged, told = tmp_path / "damaged.zip", set()
    for place in range(len(whole)):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            take(damaged, params)
        except UserError as error:
            told.add(str(error).partition(";")[0])
        except InterruptedError:
            assert packing._unpack(damaged, tmp_path / str(place)) == right
    assert told == {f"{damaged}: not a file that `lenet5 record pack` wrote, or damaged"}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result as ``pack`` writes it, without most of its files."""
    tags = {RESULT: "a result", TRAINING: "a training", "git.dirty": "true"}
    about = {"format": 1, "name": "a name", "started": 1, "ended": 2, "params": {}, "points": [], "datasets": [],
             "tags": tags, "version": {"description": "", "tags": {}}}  # fmt: skip
    Model().save(str(tmp_path / "MLmodel"))
    file = tmp_path / "result.zip"
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("result.json", json.dumps(about))
        content.writestr("run/params.yaml", "")
        content.write(tmp_path / "MLmodel", "model/MLmodel")
    return file


@pytest.fixture
def taken_in_part(store: Store, result: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run of a ``take`` that was killed near its end."""
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_terminated", goes_away)
        with pytest.raises(UserError, match="the same command takes it up again"):
            take(result, params)
    (run,) = store.client.search_runs([store.experiment_id])
    return str(run.info.run_id)


def goes_away(*_: object) -> None:
    raise MlflowException("no route to the server")


def test_a_result_taken_in_part_is_nothing_to_others_and_is_said_until_it_is_taken_whole(
    store: Store, result: Path, params: Params, taken_in_part: str
) -> None:
    own = store.client.create_run(store.experiment_id).info.run_id
    assert store.close_training(own, "a training") == own
    (said,) = [finding.text for finding in verify(params) if finding.subject == "run" and taken_in_part in finding.text]
    assert "taken in part; the same `lenet5 record take` takes it up again" in said
    assert "a name is run" in take(result, params)
    assert "is here already" in take(result, params)
    (taken,) = store.runs(RESULT, "a result")
    assert {run.info.run_id for run in store.runs(TRAINING, "a training")} == {own, taken.info.run_id}
    assert {run.info.run_id for run in store.client.search_runs([store.experiment_id])} == {own, taken.info.run_id}
    assert [one.run_id for one in store.client.search_model_versions()] == [taken.info.run_id]


def test_taking_again_deletes_no_run_that_has_become_a_result(
    store: Store, result: Path, params: Params, taken_in_part: str
) -> None:
    store.client.set_tag(taken_in_part, RESULT, "another result")
    take(result, params)
    assert store.client.get_run(taken_in_part).info.lifecycle_stage == LifecycleStage.ACTIVE
    assert [one.run_id for one in store.client.search_model_versions()] == [taken_in_part]


def test_changes_of_the_working_tree_that_are_gone_are_said_and_make_record_is_not_promised(
    store: Store, result: Path, params: Params, tmp_path: Path
) -> None:
    take(result, params)
    (run,) = store.runs(RESULT, "a result")
    lost = "pipeline/changes.diff missing, without which nobody can repeat it; only a copy of that file brings it back"
    assert [finding.text for finding in verify(params) if lost in finding.text] == [
        f"a name ({run.info.run_id}): {lost}"
    ]
    for path in (*NEEDED, f"pipeline/{PARAMS_FILE}"):
        store.client.log_text(run.info.run_id, "", str(path))
    assert not any("its model missing" in finding.text for finding in verify(params))
    with pytest.raises(UserError, match=lost):
        pack(run.info.run_id, params, tmp_path / "again.zip")
    store.client.log_text(run.info.run_id, "", DIFF)
    assert not any(lost in finding.text for finding in verify(params))
    assert pack(run.info.run_id, params, tmp_path / "again.zip") == "a name"


def test_a_result_is_not_packed_into_a_folder(tmp_path: Path, params: Params) -> None:
    folder = tmp_path / "folder.zip"
    folder.mkdir()
    for place in (tmp_path, folder):
        with pytest.raises(UserError, match="give a file that ends in"):
            pack("champion", params, place)


def test_a_version_whose_run_and_model_are_gone_holds_nothing_and_another_takes_its_place(
    store: Store, result: Path, params: Params
) -> None:
    take(result, params)
    (version,) = store.client.search_model_versions()
    store.client.delete_logged_model(str(version.source).removeprefix("models:/"))
    store.client.delete_run(version.run_id)
    deleted = "version 1: its run or its model was deleted"
    assert any(deleted in finding.text for finding in verify(params))
    assert "version 2 of a-model, without an alias" in take(result, params)
    assert not any(deleted in finding.text for finding in verify(params))
    store.client.set_registered_model_alias("a-model", "mine", "1")  # this `make record` hands on
    assert any(deleted in finding.text for finding in verify(params))


def test_a_result_is_packed_with_the_version_that_an_earlier_run_of_its_weights_has(
    store: Store, result: Path, params: Params
) -> None:
    take(result, params)
    (version,) = store.client.search_model_versions()
    store.client.set_model_version_tag("a-model", version.version, "weights_sha256", "0123")
    again = store.client.create_run(store.experiment_id, tags={"digest.weights": "0123"})
    assert packing._about(store.client, again)["version"]["tags"] == {"weights_sha256": "0123"}
    other = store.client.create_run(store.experiment_id, tags={"digest.weights": "4567"})
    assert packing._about(store.client, other)["version"] is None
