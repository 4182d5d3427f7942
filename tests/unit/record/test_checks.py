import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lenet5.record import checks
from lenet5.record.attempt import begin
from lenet5.workspace import ATTEMPTS, CHECKPOINTS
from tests.unit.conftest import only

pytestmark = pytest.mark.usefixtures("workspace")


def record(schema: str) -> None:
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num)")
        database.execute("CREATE TABLE runs (lifecycle_stage)")
        database.execute("INSERT INTO alembic_version VALUES (?)", [schema])
        database.executemany("INSERT INTO runs VALUES (?)", [["active"], ["active"], ["deleted"]])


@pytest.mark.parametrize(
    ("schema", "level", "said"),
    [("451aebb31d03", "problem", "mlflow db upgrade sqlite:///"), ("from_the_future", "problem", "newer MLflow")],
)
def test_a_record_of_another_mlflow_is_a_problem(schema: str, level: str, said: str) -> None:
    record(schema)
    finding = only(checks.check_store)
    assert finding.level == level
    assert said in finding.text


def test_a_record_that_is_none_is_a_problem_and_none_yet_is_not(workspace: Path) -> None:
    none = only(checks.check_store)
    assert none.level == "note"
    assert "`make record` where every stage is up to date" in none.text
    for content in (b"", b"This is no database."):
        (workspace / "mlflow.db").write_bytes(content)
        finding = only(checks.check_store)
        assert finding.level == "problem"
        assert "make record" in finding.text


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        ("ok answers, MLflow 3.17.2\n", ("ok", "http://example.org answers, MLflow 3.17.2")),
        ("problem is no MLflow server\n", ("problem", "http://example.org is no MLflow server")),
        (None, ("problem", "http://example.org cannot be asked, MLflow does not start; `python -m lenet5.record.server`"
                " says why")),
    ],
)  # fmt: skip
def test_a_server_is_told_about_as_every_command_does(
    monkeypatch: pytest.MonkeyPatch, answer: str | None, finding: tuple[str, str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:sesame@example.org")
    monkeypatch.setattr(checks, "call", lambda *_: answer)
    found = only(checks.check_store)
    assert (found.level, found.text) == finding


def test_an_address_that_cannot_be_used_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://someone:ses/ame@example.org")
    found = only(checks.check_store)
    assert found.level == "problem"
    assert "%2F" in found.text


def whole_record(workspace: Path, *runs: tuple[str, str, bool]) -> None:
    """A record of MLflow's schema, of what matters here: (run, status, is a result), each with its files."""
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("CREATE TABLE runs (run_uuid, name, artifact_uri, status, lifecycle_stage)")
        database.execute("CREATE TABLE tags (run_uuid, key, value)")
        database.execute("CREATE TABLE logged_models (model_id)")
        database.execute("CREATE TABLE experiments (experiment_id, artifact_location)")
        database.execute("INSERT INTO experiments VALUES (0, ?)", [(workspace / "mlruns/0").as_uri()])
        database.execute("INSERT INTO logged_models VALUES (?)", [f"m-{'a' * 32}"])
        for run, status, is_result in runs:
            files = workspace / "mlruns/lenet5 #1" / run / "artifacts"
            files.mkdir(parents=True)
            values = (run, f"named {run[0]}", files.as_uri(), status, "active")
            database.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?)", values)
            tag = (run, "result" if is_result else "attempt", f"{run[0]}" * 32)
            database.execute("INSERT INTO tags VALUES (?, ?, ?)", tag)
    (workspace / f"mlruns/lenet5 #1/models/m-{'a' * 32}/artifacts").mkdir(parents=True)


def test_results_without_files_and_files_without_a_run_are_told(workspace: Path) -> None:
    first, second = "1" * 32, "2" * 32
    whole_record(workspace, (first, "FINISHED", True), (second, "FINISHED", True))
    assert only(checks.check_files).text == "all results (2) have their files"
    (workspace / f"mlruns/lenet5 #1/{first}/artifacts").rmdir()
    (workspace / f"mlruns/lenet5 #1/{'3' * 32}").mkdir()
    (workspace / f"mlruns/lenet5 #1/models/m-{'b' * 32}").mkdir()
    gone, unknown = checks.check_files()
    assert (gone.level, unknown.level) == ("problem", "note")
    assert "results without their files: named 1;" in gone.text
    assert f"mlruns/lenet5 #1/models/m-{'b' * 32}" in unknown.text
    assert f"mlruns/lenet5 #1/{'3' * 32}" in unknown.text
    assert second not in unknown.text
    assert "aaaa" not in unknown.text


def test_results_of_a_workspace_that_was_moved_have_their_files(workspace: Path) -> None:
    whole_record(workspace, ("1" * 32, "FINISHED", True), ("2" * 32, "FINISHED", True))
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        here = [workspace.as_uri().removeprefix("file://")]
        database.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, '/moved/away')", here)
        database.execute(
            "UPDATE experiments SET artifact_location = replace(artifact_location, ?, '/moved/away')", here
        )
    assert only(checks.check_files).text == "all results (2) have their files"
    (workspace / f"mlruns/lenet5 #1/{'1' * 32}/artifacts").rmdir()
    assert "results without their files: named 1;" in only(checks.check_files).text


def test_a_run_that_stays_running_is_told_unless_its_training_is_known(workspace: Path) -> None:
    whole_record(workspace, ("1" * 32, "RUNNING", False), ("2" * 32, "KILLED", False), ("3" * 32, "RUNNING", False))
    (workspace / ATTEMPTS).mkdir(parents=True)
    (workspace / ATTEMPTS / "key.unfinished").write_text("3" * 32)
    finding = only(checks.check_files)
    assert finding.level == "note"
    assert "RUNNING, but no training of this folder: named 1;" in finding.text


def test_a_record_in_use_is_not_to_be_moved_away(monkeypatch: pytest.MonkeyPatch) -> None:
    record("451aebb31d03")
    monkeypatch.setattr(checks, "_PATIENCE", 0.1)
    with closing(sqlite3.connect("mlflow.db", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        finding = only(checks.check_store)
    assert finding.level == "problem"
    assert "in use by another process" in finding.text
    assert "move it" not in finding.text


def test_stray_stores_are_found(workspace: Path) -> None:
    assert only(checks.check_stray_stores).level == "ok"
    (workspace / "mlruns/lenet5/0123/artifacts").mkdir(parents=True)
    assert only(checks.check_stray_stores).level == "ok"
    (workspace / "mlruns/0").mkdir()
    (workspace / "mlruns/0/meta.yaml").write_text("name: Default")
    (workspace / "stages").mkdir()
    (workspace / "stages/mlflow.db").touch()
    old, apart = checks.check_stray_stores()
    assert old.level == "problem"
    assert "mlruns/0;" in old.text
    assert apart.level == "note"
    assert "stages/mlflow.db" in apart.text


def test_a_training_that_was_cut_short_is_told_with_what_is_left_of_it(workspace: Path) -> None:
    assert only(checks.check_trainings).level == "ok"
    for number, about in enumerate(("sigmoid-seed0", "relu-seed1")):
        with suppress(KeyboardInterrupt), begin(workspace / ATTEMPTS, str(number) * 64, about):
            raise KeyboardInterrupt
    (workspace / CHECKPOINTS).mkdir()
    (workspace / CHECKPOINTS / f"{'1' * 32}.pt").touch()
    with begin(workspace / ATTEMPTS, "2" * 64, "one that runs"):
        finding = only(checks.check_trainings)
    assert finding.level == "note"
    assert "sigmoid-seed0 (no checkpoint), relu-seed1 (checkpoint of 20" in finding.text
    assert "one that runs" not in finding.text
