"""Experiments side by side: all record in the main workspace's store, and none hurts another."""

import csv
import io

import pytest

from .conftest import Project, wait_until

pytestmark = pytest.mark.soak


def names_shown(project: Project) -> set[str]:
    table = csv.DictReader(io.StringIO(project.run("dvc", "exp", "show", "--csv").stdout))
    return {row["Experiment"] for row in table if row["Experiment"]}


def states(project: Project) -> set[str]:
    lines = project.run("dvc", "queue", "status").stdout.splitlines()
    return {
        line.split()[-1] for line in lines if line[:7].strip().isalnum() and "Created" not in line and line[0] != " "
    }


def test_queued_experiments_are_whole_runs_named_as_dvc_names_them(project: Project) -> None:
    project.edit({"train.epochs": 1})
    project.repro("download", "kernel_check")
    project.commit()
    project.run("dvc", "exp", "run", "--queue", "-S", "train.seed=1,2,3,4")
    project.run("dvc", "queue", "start", "--jobs", "2")
    wait_until(lambda: not {"Queued", "Running"} & states(project), seconds=280)
    assert states(project) == {"Success"}
    runs = project.runs()
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["train.seed"] for run in runs} == {"1", "2", "3", "4"}
    assert {run.info.run_name for run in runs} == names_shown(project)
    assert len(runs) == 4
    for run in runs:
        assert project.steps(run, "loss/test") == [1]
        assert run.data.tags["dvc.baseline"] == run.data.tags["mlflow.source.git.commit"]
    champion = project.mlflow().get_model_version_by_alias("lenet5-fashionmnist", "champion")
    assert champion.run_id in {run.info.run_id for run in runs}


def test_an_experiment_in_a_temporary_folder_records_in_the_main_workspace(project: Project) -> None:
    project.edit({"train.epochs": 1})
    project.commit()
    project.run("dvc", "exp", "run", "--temp", "--name", "aside", timeout=280)
    (run,) = project.runs()
    assert run.info.run_name == "aside"
    assert run.info.artifact_uri.startswith(f"file://{project.path}/mlruns/")
    assert not (project.path / "models/lenet5.pth").exists()
