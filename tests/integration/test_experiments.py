"""Experiments side by side: all record in the main workspace's store, and none hurts another."""

import csv
import io
from collections.abc import Callable

import pytest

from .conftest import Project

Report = Callable[[str], None]


def names_shown(project: Project) -> set[str]:
    table = csv.DictReader(io.StringIO(project.run("dvc", "exp", "show", "--csv").stdout))
    return {row["Experiment"] for row in table if row["Experiment"]}


@pytest.mark.soak
def test_queued_experiments_are_whole_runs_named_as_dvc_names_them(project: Project) -> None:
    project.repro("download", "kernel_check")
    project.commit()
    project.run("dvc", "exp", "run", "--queue", "-S", "train.seed=1,2,3,4", "-S", "train.epochs=2")
    project.start_queue(2)
    project.wait_for_queue(4)
    runs = project.runs()
    assert {run.info.run_name for run in runs} == names_shown(project)
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert {run.data.params["train.seed"] for run in runs} == {"1", "2", "3", "4"}
    for run in runs:
        assert project.steps(run, "loss/test") == [1, 2]
        assert run.data.tags["dvc.baseline"] == run.data.tags["mlflow.source.git.commit"]
    champion = project.mlflow().get_model_version_by_alias("lenet5-fashionmnist", "champion")
    assert champion.run_id in {run.info.run_id for run in runs}


def test_eight_experiments_over_four_workers_beside_a_repro(project: Project, report: Report) -> None:
    project.shrink({})
    project.repro("download", "kernel_check")
    project.commit()
    project.run("dvc", "exp", "run", "--queue", "-S", "train.seed=1,2,3,4,5,6,7,8")
    project.start_queue(4)
    assert "register" in project.repro()  # the first two create the store at the same time
    project.wait_for_queue(8)
    runs = project.runs()
    assert {run.data.params["train.seed"] for run in runs} == {str(seed) for seed in range(9)}
    whole = [
        run.info.status == "FINISHED" and project.steps(run, "loss/test") == [1, 2] and "result" in run.data.tags
        for run in runs
    ]
    assert whole == [True] * 9
    versions = project.mlflow().search_model_versions("name = 'lenet5-fashionmnist'")
    assert {version.run_id for version in versions} == {run.info.run_id for run in runs}
    report("8 experiments over 4 workers, and a dvc repro beside them: 9 whole runs of 9, 9 versions")


@pytest.mark.soak
def test_an_experiment_in_a_temporary_folder_records_in_the_main_workspace(project: Project) -> None:
    project.edit({"train.epochs": 1})
    project.commit()
    project.run("dvc", "exp", "run", "--temp", "--name", "aside", timeout=280)
    (run,) = project.runs()
    assert run.info.run_name == "aside"
    assert run.info.artifact_uri.startswith(f"file://{project.path}/mlruns/")
    assert not (project.path / "models/lenet5.pth").exists()
