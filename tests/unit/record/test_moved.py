import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lenet5.record.moved import follow_the_workspace


def write(folder: Path, runs: dict[str, Path], first: Path) -> Path:
    """A record in ``folder`` as MLflow keeps it, of what matters here, with runs and the places of their files."""
    folder.mkdir(exist_ok=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as record, record:
        record.execute("CREATE TABLE experiments (experiment_id, artifact_location)")
        record.execute("CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, artifact_uri)")
        record.execute("CREATE TABLE logged_models (model_id, artifact_location)")
        record.execute("CREATE TABLE model_versions (name, source, storage_location)")
        places = [(0, (first / "mlruns/0").as_uri()), (1, (first / "mlruns/lenet5").as_uri())]
        record.executemany("INSERT INTO experiments VALUES (?, ?)", places)
        record.executemany("INSERT INTO runs VALUES (?, ?)", [(name, path.as_uri()) for name, path in runs.items()])
        record.execute("INSERT INTO logged_models VALUES ('m', ?)", [(first / "mlruns/lenet5/models/m").as_uri()])
        record.execute("INSERT INTO model_versions VALUES ('n', 'models:/m', NULL)")
    return folder / "mlflow.db"


def places(database: Path) -> dict[str, str]:
    with closing(sqlite3.connect(database)) as record:
        experiments = record.execute("SELECT 'experiment ' || experiment_id, artifact_location FROM experiments")
        return dict([*experiments, *record.execute("SELECT run_uuid, artifact_uri FROM runs")])


@pytest.mark.parametrize("name", ["copy", "100 % of what?", "卷积 #1"])
def test_a_copy_names_its_own_files_and_leaves_those_that_are_only_anothers(tmp_path: Path, name: str) -> None:
    original, copy = tmp_path / "original", tmp_path / name
    copied, theirs, none = (Path("mlruns/lenet5", run, "artifacts") for run in ("copied", "theirs", "none"))
    for folder in (original / copied, original / theirs, copy / copied):
        folder.mkdir(parents=True)
    runs = {"copied": original / copied, "theirs": original / theirs, "none": original / none}
    database = write(copy, runs, original)
    follow_the_workspace(database, copy)
    assert places(database) == {
        "experiment 0": (copy / "mlruns/0").as_uri(),
        "experiment 1": (copy / "mlruns/lenet5").as_uri(),
        "copied": (copy / copied).as_uri(),
        "theirs": (original / theirs).as_uri(),  # this record was made through an address from there
        "none": (copy / none).as_uri(),
    }


def test_a_copy_whose_database_was_born_of_mlflow_ui_names_its_own_files(tmp_path: Path) -> None:
    original, copy, run = tmp_path / "original", tmp_path / "copy", Path("mlruns/lenet5/run/artifacts")
    for folder in (original, copy):
        (folder / run).mkdir(parents=True)
    database = write(copy, {"run": original / run}, original)
    with closing(sqlite3.connect(database)) as record, record:
        record.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0' WHERE experiment_id = 0")
    follow_the_workspace(database, copy)
    assert places(database) == {
        "experiment 0": "mlflow-artifacts:/0",
        "experiment 1": (copy / "mlruns/lenet5").as_uri(),
        "run": (copy / run).as_uri(),
    }


def test_a_database_that_is_not_the_workspaces_own_stays(tmp_path: Path) -> None:
    database = write(tmp_path / "theirs", {}, tmp_path / "original")
    before = database.read_bytes()
    follow_the_workspace(database, tmp_path / "mine")
    assert database.read_bytes() == before
