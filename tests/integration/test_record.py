"""The MLflow record, with real stores and servers, through what happens to records in real life."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from .conftest import Project, least_disturbed, wait_until, zygote
from .servers import answer, free_port, http_server, mlflow_server

NAME = "lenet5-fashionmnist"
LATER = ("kernel_check", "evaluate", "export", "register")


def refusal(project: Project, **env: str) -> str:
    """What the stage register says when it refuses: one line, exit status 1, no traceback, outs untouched."""
    weights = (project.path / "models/lenet5.pth").read_bytes()
    done = project.stage("register", check=False, **env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (project.path / "models/lenet5.pth").read_bytes() == weights
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("register: ")]
    return line


def test_registering_again_changes_nothing(finished: Project) -> None:
    before = finished.runs()[0].data.metrics
    for _ in range(3):
        finished.repro("--force", "--single-item", "register")
    (run,) = finished.runs()
    assert run.data.metrics == before
    assert len(finished.mlflow().search_model_versions()) == 1
    assert finished.steps(run, "loss/test") == [1, 2]


def test_a_figure_of_the_finished_model_has_one_name_which_mlflows_search_takes_as_it_is(finished: Project) -> None:
    (run,) = finished.runs()
    searched = finished.mlflow().search_runs
    accuracy, where = finished.json("evaluation")["test"]["accuracy"], [run.info.experiment_id]
    for name in (name for name in run.data.metrics if "/" not in name):
        assert searched(where, f"metrics.{name} > -1000000"), name
    assert run.data.metrics["test_accuracy"] == accuracy
    assert not searched(where, f"metrics.test_accuracy > {accuracy}")
    same = [name for name in run.data.metrics if "test" in name and "accuracy" in name]
    assert sorted(same) == [
        "accuracy/test", "gap_test_accuracy", "test_accuracy", "test_accuracy_high", "test_accuracy_low",
    ]  # fmt: skip


def test_run_and_version_carry_the_model_card_and_registering_again_leaves_it(finished: Project) -> None:
    client = finished.mlflow()
    (run,) = finished.runs()
    (version,) = client.search_model_versions()
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    card = (folder / "reports/model_card.md").read_text()
    assert card.startswith((finished.path / "reports/model_card.md").read_text())
    assert f"`lenet5 reproduce {run.info.run_id}`" in card
    assert f"models:/{NAME}/{version.version}" in card
    assert "champion: there was no champion" in card
    assert version.description.startswith("Became champion when registered: there was no champion")
    assert "The validation loss" in version.description
    assert run.data.tags["mlflow.note.content"] in version.description
    page = (folder / "reports/model_card.html").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert run.info.run_id in page
    pictures = {path.name for path in (folder / "plots").glob("*.png")}
    assert pictures == {path.name for path in (finished.path / "plots").glob("*.png")}
    assert len(pictures) == 8
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    finished.repro("--force", "--single-item", "register")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == written
    assert client.search_model_versions()[0].description == version.description


def test_a_run_says_where_it_comes_from(finished: Project) -> None:
    (run,) = finished.runs()
    head = finished.run("git", "rev-parse", "HEAD~1").stdout.strip()
    assert run.data.tags["mlflow.source.git.commit"] == head
    assert run.data.tags["git.dirty"] == "false"
    (model,) = finished.mlflow().search_logged_models([run.info.experiment_id])
    assert run.info.end_time < model.creation_timestamp  # it ended with training, not when it was registered
    assert run.data.tags["device"] == "cpu"
    assert "torch" in run.data.tags["versions"]
    contexts = {tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags}
    assert contexts == {"training", "validation", "test"}
    artifacts = {item.path for item in finished.mlflow().list_artifacts(run.info.run_id, "pipeline")}
    assert artifacts == {"pipeline/params.yaml", "pipeline/dvc.yaml", "pipeline/dvc.lock"}


@pytest.mark.parametrize(("chosen", "off"), [([], True), (["MLFLOW_DISABLE_TELEMETRY=false"], False)])
def test_telemetry_is_off_unless_a_person_turns_it_on(finished: Project, chosen: list[str], off: bool) -> None:
    asks = "import lenet5.record.store, mlflow.environment_variables as e; print(e.MLFLOW_DISABLE_TELEMETRY.get())"
    done = finished.run("env", "--unset=MLFLOW_DISABLE_TELEMETRY", *chosen, "python", "-c", asks)
    assert done.stdout == f"{off}\n"


def test_an_experiment_that_completes_a_run_is_the_name_that_everything_calls_it_by(pipeline_copy: Project) -> None:
    (run,) = pipeline_copy.runs()
    pipeline_copy.mlflow().delete_tag(run.info.run_id, "result")  # trained, and then the server went away
    head = pipeline_copy.run("git", "rev-parse", "HEAD").stdout.strip()
    pipeline_copy.stage("register", DVC_EXP_NAME="sunny-day", DVC_EXP_BASELINE_REV=head)
    (run,) = pipeline_copy.runs()
    assert run.info.run_name == pipeline_copy.json("registration")["run_name"] == "sunny-day"
    card = pipeline_copy.mlflow().download_artifacts(run.info.run_id, "reports/model_card.md")
    assert f"sunny-day, `{run.info.run_id}`" in Path(card).read_text()


def test_a_run_that_is_completed_later_says_which_code_completed_it(pipeline_copy: Project) -> None:
    client = pipeline_copy.mlflow()
    (run,) = pipeline_copy.runs()
    run_id = run.info.run_id

    def registered() -> dict[str, str]:
        client.delete_tag(run_id, "result")  # trained, and then the server went away
        pipeline_copy.stage("register")
        return dict(client.get_run(run_id).data.tags)

    with (pipeline_copy.path / "src/lenet5/results/evaluation.py").open("a") as code:
        code.write("# changed after training\n")
    assert registered()["git.dirty"] == "true"
    diff = Path(client.download_artifacts(run_id, "pipeline/changes.diff")).read_text()
    assert "+# changed after training" in diff
    pipeline_copy.commit()
    tags = registered()
    head = pipeline_copy.run("git", "rev-parse", "HEAD").stdout.strip()
    assert (tags["git.dirty"], tags["mlflow.source.git.commit"]) == ("false", head)


def test_a_wiped_record_is_rebuilt_from_the_outs(pristine: Project, pipeline_copy: Project) -> None:
    (before,) = pristine.runs()
    (pipeline_copy.path / "mlflow.db").unlink()
    shutil.rmtree(pipeline_copy.path / "mlruns")
    pipeline_copy.repro("--force", "--single-item", "register")  # make record
    (run,) = pipeline_copy.runs()
    assert run.info.status == "FINISHED"
    del before.data.metrics["speed/images_per_second"]  # the outs do not hold it
    assert run.data.metrics == before.data.metrics
    assert pipeline_copy.steps(run, "loss/validation") == [1, 2]
    assert pipeline_copy.mlflow().get_model_version_by_alias(NAME, "champion").version == 1


def test_outs_are_not_recorded_under_params_that_did_not_make_them(pipeline_copy: Project) -> None:
    (before,) = pipeline_copy.runs()
    pipeline_copy.edit({"train.lr": 0.123})
    done = pipeline_copy.run("dvc", "repro", "--force", "--single-item", "register", check=False)  # make record
    assert "register: params.yaml has changed since train ran; `dvc repro` first" in done.stderr
    assert [run.info.run_id for run in pipeline_copy.runs()] == [before.info.run_id]


@pytest.mark.parametrize(
    "gone",
    [
        "",
        "*/*/artifacts/plots",
        "*/models/*/artifacts",
        "*/models/*/artifacts/MLmodel",
        "*/models/*/artifacts/evidence/about.json",  # it comes last: a process was killed before it
    ],
)
def test_files_deleted_by_hand_come_back_with_the_record(pipeline_copy: Project, gone: str) -> None:
    pipeline_copy.stage("register")
    (before,) = pipeline_copy.runs()
    mlruns = pipeline_copy.path / "mlruns"
    for place in list(mlruns.glob(gone)) if gone else [mlruns]:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    pipeline_copy.stage("register")
    compared = pipeline_copy.run("lenet5", "compare", "champion", before.info.run_id)
    assert "Neither is better" in compared.stdout
    predicted = pipeline_copy.run("lenet5", "predict", "--model", f"models:/{NAME}@champion", "docs/img/boot.png")
    assert "Ankle boot" in predicted.stdout
    (run,) = pipeline_copy.runs()
    assert (run.info.run_id, run.info.end_time) == (before.info.run_id, before.info.end_time)
    assert len(pipeline_copy.mlflow().search_model_versions()) == 1
    assert pipeline_copy.json("registration")["alias"] == "champion"


@pytest.mark.soak
def test_two_registrations_at_once_leave_one_run_and_one_version(pipeline_copy: Project) -> None:
    (pipeline_copy.path / "mlflow.db").unlink()  # so they create the store at once, too
    shutil.rmtree(pipeline_copy.path / "mlruns")
    with (
        pipeline_copy.started("python", "stages/register.py") as first,
        pipeline_copy.started("python", "stages/register.py") as second,
    ):
        outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    (run,) = pipeline_copy.runs()
    assert pipeline_copy.steps(run, "loss/test") == [1, 2]
    assert len(pipeline_copy.mlflow().search_model_versions()) == 1


def as_if_trained(project: Project, right: int) -> None:
    """Make the outs those of another model, which is right on the first ``right`` test images."""
    path = project.path / "plots/predictions.csv"
    table = pd.read_csv(path)
    table["predicted"] = table["true"].where(table.index < right, table["true"].map(lambda name: f"not {name}"))
    table.to_csv(path, index=False)
    weights = f"weights of a model right {right} times".encode()
    (project.path / "models/lenet5.pth").write_bytes(weights)
    training = project.json("training") | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    (project.path / "metrics/training.json").write_text(json.dumps(training))
    evaluation = project.json("evaluation")
    evaluation["test"]["accuracy"] = right / len(table)
    (project.path / "metrics/evaluation.json").write_text(json.dumps(evaluation))


@pytest.mark.soak
def test_only_evidence_makes_a_new_champion(pipeline_copy: Project) -> None:
    def registered(right: int) -> tuple[str, dict[str, int]]:
        as_if_trained(pipeline_copy, right)
        pipeline_copy.stage("register")
        entry = pipeline_copy.json("registration")
        return entry["became"], pipeline_copy.mlflow().get_registered_model(NAME).aliases

    assert registered(9000) == ("champion", {"champion": 2})
    assert registered(9000) == ("champion", {"champion": 2})  # the same again: decided once
    assert registered(9001) == ("challenger", {"champion": 2, "challenger": 3})  # better, by luck perhaps
    assert registered(8500) == ("challenger", {"champion": 2, "challenger": 4})  # worse
    assert registered(100) == ("rejected", {"champion": 2, "challenger": 4})  # below the limit
    assert registered(9100) == ("champion", {"champion": 5, "challenger": 4})
    version = pipeline_copy.mlflow().get_model_version_by_alias(NAME, "champion")
    decision = json.loads(version.tags["decision"])
    assert (decision["candidate_only"], decision["champion_only"]) == (100, 0)
    assert decision["p_value"] < 1e-20
    became = "Became champion when registered: right on 100 test images that the champion misses, wrong on 0"
    assert version.description.startswith(became)

    for kept in (pipeline_copy.path / "mlruns").rglob("predictions.csv"):  # of runs, and what models were judged by
        kept.unlink()
    alias, aliases = registered(9500)
    assert (alias, aliases["champion"]) == ("challenger", 5)
    assert "are gone with its model and run" in pipeline_copy.json("registration")["reason"]
    assert registered(200)[0] == "rejected"  # whoever it would have been compared with


@pytest.mark.soak
def test_a_registration_killed_over_its_decision_ends_it_as_it_was(pipeline_copy: Project) -> None:
    client = pipeline_copy.mlflow()
    as_if_trained(pipeline_copy, 9500)
    pipeline_copy.stage("register")
    before, version = pipeline_copy.json("registration"), client.get_model_version_by_alias(NAME, "champion")
    client.delete_model_version_tag(NAME, version.version, "decided")
    pipeline_copy.stage("register")
    assert pipeline_copy.json("registration") == before
    assert client.get_registered_model(NAME).aliases == {"champion": 2}
    assert client.get_model_version(NAME, "2").tags.keys() == version.tags.keys()


@pytest.mark.soak
def test_a_half_recorded_result_is_not_mixed_with_the_next(pipeline_copy: Project) -> None:
    client = pipeline_copy.mlflow()
    (half,) = pipeline_copy.runs()
    client.set_tag(half.info.run_id, "completing", half.data.tags["result"])
    client.delete_tag(half.info.run_id, "result")
    client.update_run(half.info.run_id, status="RUNNING")
    evaluation = pipeline_copy.json("evaluation")
    evaluation["calibration_error"] = 0.125
    (pipeline_copy.path / "metrics/evaluation.json").write_text(json.dumps(evaluation))
    pipeline_copy.stage("register")
    cut, whole = pipeline_copy.runs()
    assert (cut.info.run_id, cut.info.status, whole.info.status) == (half.info.run_id, "KILLED", "FINISHED")
    assert whole.data.tags["history_from"] == half.info.run_id
    assert whole.data.metrics["calibration_error"] == 0.125
    assert cut.data.metrics["calibration_error"] != 0.125
    # The version is of the run that was cut short; who asks for it gets the whole one.
    compared = pipeline_copy.run("lenet5", "compare", f"models:/{NAME}/1", whole.info.run_id)
    assert "Neither is better" in compared.stdout


@pytest.mark.soak
def test_a_server_that_goes_away_and_comes_back_gets_every_point_once(project: Project, tmp_path: Path) -> None:
    project.link_data()
    project.shrink({"train.epochs": 60})
    port, store = free_port(), tmp_path / "server"
    uri = f"http://127.0.0.1:{port}"
    with mlflow_server(project, store, port):
        log = tmp_path / "train.log"
        with log.open("w") as stream:
            training = subprocess.Popen(
                ["python", "stages/train.py"], cwd=project.path, env=project.env | {"MLFLOW_TRACKING_URI": uri},
                stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(lambda: bool(project.runs(uri)) and "loss/test" in project.runs(uri)[0].data.metrics)
    wait_until(lambda: "MLflow is behind" in log.read_text())
    assert training.poll() is None, "training stopped with the server"
    with mlflow_server(project, store, port):
        assert training.wait() == 0
        # Where a toolkit is and no card, PyTorch's own compilation would say so.
        said = [project.stage(stage, MLFLOW_TRACKING_URI=uri, CUDA_HOME="/usr") for stage in LATER]
        (run,) = project.runs(uri)
        assert run.info.status == "FINISHED"
        for curve in ("loss/train", "accuracy/validation", "gap/loss", "learning_rate"):
            assert project.steps(run, curve, uri) == list(range(1, 61))
    trained = log.read_text()
    assert trained.count("MLflow is behind") == 1
    page = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    assert trained.index(f"MLflow run, live: {page}\n") < trained.index("MLflow is behind")
    assert said[-1].stdout.startswith(f"MLflow run {run.info.run_name}\n")
    assert said[-1].stdout.endswith(f"; {page}\n")
    assert "View run" not in trained + said[-1].stdout
    assert [done.stderr for done in said] == [""] * len(LATER)


@pytest.mark.soak
def test_a_server_that_misses_the_end_of_training_has_one_whole_run_after_register(
    pipeline_copy: Project, tmp_path: Path
) -> None:
    pipeline_copy.shrink({"train.epochs": 60})
    port, store = free_port(), tmp_path / "server"
    uri = f"http://127.0.0.1:{port}"
    log = tmp_path / "train.log"
    with mlflow_server(pipeline_copy, store, port):
        training = pipeline_copy.start_stage("train", log, log, MLFLOW_TRACKING_URI=uri)
        wait_until(lambda: bool(pipeline_copy.runs(uri)) and "loss/test" in pipeline_copy.runs(uri)[0].data.metrics)
    assert zygote().wait(training) == 0
    assert "MLflow is behind" in log.read_text()
    with mlflow_server(pipeline_copy, store, port):
        (before,) = pipeline_copy.runs(uri)
        assert len(pipeline_copy.steps(before, "loss/test", uri)) < 60, "the server missed nothing"
        for stage in ("evaluate", "export", "register"):
            pipeline_copy.stage(stage, MLFLOW_TRACKING_URI=uri)
        (run,) = pipeline_copy.runs(uri)
        assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")
        for curve in ("loss/train", "accuracy/validation", "gap/loss", "learning_rate"):
            assert pipeline_copy.steps(run, curve, uri) == list(range(1, 61))


@pytest.mark.soak
@pytest.mark.alone
def test_register_gives_up_soon_on_a_dead_server_and_is_all_that_runs_later(pipeline_copy: Project) -> None:
    pipeline_copy.shrink({"train.epochs": 1})
    dead = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    done = pipeline_copy.run("dvc", "repro", check=False, **dead)
    assert done.returncode != 0
    assert "cannot be reached" in done.stderr

    def given_up() -> float:
        start = time.monotonic()
        assert "start that server" in refusal(pipeline_copy, **dead)
        return time.monotonic() - start

    assert least_disturbed(given_up) < 15
    assert pipeline_copy.repro() == ["register"]
    assert pipeline_copy.steps(pipeline_copy.runs()[-1], "loss/test") == [1]


def test_a_store_that_cannot_be_used_is_one_clear_message(pipeline_copy: Project, tmp_path: Path) -> None:
    assert "must begin with http" in refusal(pipeline_copy, MLFLOW_TRACKING_URI="gopher://127.0.0.1/")
    with http_server(lambda handler: answer(handler, 401, b"")) as uri:
        assert "MLFLOW_TRACKING_USERNAME" in refusal(pipeline_copy, MLFLOW_TRACKING_URI=uri)
    newer = tmp_path / "newer.db"
    shutil.copy(pipeline_copy.path / "mlflow.db", newer)
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    connection.close()
    assert "another MLflow version" in refusal(pipeline_copy, MLFLOW_TRACKING_URI=f"sqlite:///{newer}")


def test_what_was_deleted_in_the_ui_is_explained_or_made_again(pipeline_copy: Project) -> None:
    client = pipeline_copy.mlflow()
    client.delete_registered_model(NAME)
    pipeline_copy.stage("register")
    assert client.get_model_version_by_alias(NAME, "champion").version == 1
    client.delete_experiment(client.get_experiment_by_name(NAME).experiment_id)
    assert "mlflow experiments restore" in refusal(pipeline_copy)


@pytest.mark.soak
def test_training_ends_with_the_link_to_its_run_which_has_system_metrics_when_asked_for(
    pipeline_copy: Project,
) -> None:
    pipeline_copy.shrink({"register.system_metrics": True, "train.epochs": 60})
    done = pipeline_copy.stage("train")
    run = pipeline_copy.runs()[-1]
    assert any(key.startswith("system/cpu") for key in run.data.metrics)
    page = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    link = f"\nMLflow run: {page}?workflowType=machine_learning (while `mlflow ui` runs)\n"
    assert done.stdout.endswith(link) or "MLflow has not got everything yet" in done.stderr


def test_variables_a_person_has_set_win(pipeline_copy: Project, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'own.db'}"
    pipeline_copy.stage("register", MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="mine")
    assert pipeline_copy.mlflow(uri).get_experiment_by_name("mine") is not None
    assert len(pipeline_copy.runs()) == 1
