"""Experiments side by side: all record in the main workspace's store, and none hurts another."""

import csv
import io
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from .conftest import REPOSITORY, Project, end_all_in, wait_until

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
def test_experiments_stand_side_by_side_on_100_columns_with_the_headline_and_the_params_that_differ(
    pipeline_copy: Project,
) -> None:
    pipeline_copy.commit()
    pipeline_copy.run("dvc", "exp", "run", "-n", "relu-max", "-S", "model.pooling=max", "-S", "train.lr=0.001")
    command = re.search("^dvc exp show .*$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert command
    table = pipeline_copy.run(*shlex.split(command.group()), "--no-pager", COLUMNS="100").stdout
    assert max(map(len, table.splitlines())) <= 100
    assert "[relu-max]" in table
    shown = table.splitlines()[1].split()
    assert set(shown) - {"champion"} == {
        "Experiment", "test", "validation", "gap", "model.pooling", "train.lr",
    }  # fmt: skip


@pytest.mark.soak
def test_a_renamed_experiment_is_found_by_both_its_names(pipeline_copy: Project) -> None:
    pipeline_copy.commit()
    pipeline_copy.run("dvc", "exp", "run", "--name", "before", "-S", "export.opset=21")
    pipeline_copy.run("dvc", "exp", "rename", "before", "after")
    run = pipeline_copy.runs()[-1]
    for name in ("before", "after"):
        assert run.info.run_id[:8] in pipeline_copy.run("lenet5", "compare", name, "champion").stdout


@pytest.mark.soak
def test_an_experiment_in_a_temporary_folder_records_in_the_main_workspace(project: Project) -> None:
    project.edit({"train.epochs": 1})
    project.commit()
    project.run("dvc", "exp", "run", "--temp", "--name", "aside")
    (run,) = project.runs()
    assert run.info.run_name == "aside"
    assert run.info.artifact_uri.startswith(f"file://{project.path}/mlruns/")
    assert not (project.path / "models/lenet5.pth").exists()


def test_an_experiment_changes_the_line_of_its_param_and_no_other(tmp_path: Path) -> None:
    """In the repository's params.yaml as committed, with real DVC and a pipeline of one stage that does nothing."""
    project = Project(tmp_path, data=tmp_path)
    committed = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=REPOSITORY, capture_output=True, check=True)
    (tmp_path / "params.yaml").write_bytes(committed.stdout)
    (tmp_path / "dvc.yaml").write_text("stages: {nothing: {cmd: echo, params: [download, kernel_check, model, train]}}")
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    project.commit()
    changes = {"train.lr": "0.123", "train.augmentation.shift": "9", "download.local_dir": "own", "model.c3": "new"}
    for name, value in changes.items():  # whatever a person has committed, it is not that
        project.run("dvc", "exp", "run", "-S", f"{name}={value}")
        diff = project.run("git", "diff", "--unified=0", "params.yaml").stdout
        old, new = [line for line in diff.splitlines()[4:] if line[0] in "+-"]
        assert old.startswith(f"-{new[1:].partition(':')[0]}:")
        assert f"{name.split('.')[-1]}: {value}" in new
        project.run("git", "checkout", "params.yaml")


@pytest.mark.soak
def test_in_a_path_beyond_ascii_an_experiment_of_its_own_folder_needs_the_cache_elsewhere(
    project: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "卷积 lenet"
    folder.mkdir()
    moved = Project(project.path.rename(folder / "project"), Path(project.env["FASHION_MNIST_DIR"]))
    command = ("dvc", "exp", "run", "--temp", "-S", "kernel_check.lr=0.019", "kernel_check")
    failed = moved.run(*command, check=False)
    assert "'ascii' codec can't encode" in failed.stdout + failed.stderr
    assert "move it, and `dvc cache dir --local`" in moved.run("lenet5", "doctor", check=False).stdout
    moved.run("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    assert "Ran experiment" in moved.run(*command).stdout
    assert "`dvc cache dir --local`" not in moved.run("lenet5", "doctor", check=False).stdout


def test_nothing_that_a_test_started_outlives_it(project: Project) -> None:
    project.run("git", "config", "user.name", "a")
    project.run("dvc", "exp", "run", "--queue", "kernel_check")
    project.start_queue(1)
    wait_until(lambda: working_in(project.path))
    end_all_in(project.path)
    wait_until(lambda: not working_in(project.path), seconds=10)


def working_in(folder: Path) -> list[int]:
    processes = psutil.process_iter(["pid", "cwd"])
    return [one.info["pid"] for one in processes if one.info["cwd"] and Path(one.info["cwd"]).is_relative_to(folder)]
