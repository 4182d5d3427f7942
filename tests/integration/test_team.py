"""A team: one MLflow server on PostgreSQL for all, one DVC remote."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Project
from .servers import free_port, mlflow_server, postgresql

NAME = "lenet5-fashionmnist"


def test_another_machine_pulls_runs_nothing_and_rebuilds_the_record(pipeline_copy: Project, tmp_path: Path) -> None:
    pipeline_copy.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    pipeline_copy.commit()
    pipeline_copy.run("dvc", "push")
    clone = pipeline_copy.clone(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert clone.repro() == []
    assert clone.runs() == []
    clone.repro("--force", "--single-item", "register")  # make record
    (run,) = clone.runs()
    assert clone.steps(run, "loss/test") == [1, 2]


@pytest.mark.soak
def test_four_experiments_at_once_are_whole_on_a_server_with_postgresql(
    project: Project, tmp_path: Path, report: Callable[[str], None]
) -> None:
    project.shrink({})
    project.repro("download", "kernel_check")
    project.commit()
    # Not in tmp_path: its folders are closed to the user that PostgreSQL runs as.
    with (
        tempfile.TemporaryDirectory() as folder,
        postgresql(readable(Path(folder)) / "postgresql", free_port()) as backend,
        mlflow_server(project, tmp_path / "server", free_port(), backend) as uri,
    ):
        server = {"MLFLOW_TRACKING_URI": uri}
        project.run("dvc", "exp", "run", "--queue", "-S", "train.seed=1,2,3,4", **server)
        project.start_queue(4, **server)
        project.wait_for_queue(4)
        runs = project.runs(uri)
        assert {run.data.params["train.seed"] for run in runs} == {"1", "2", "3", "4"}
        for run in runs:
            assert run.info.status == "FINISHED"
            assert "test_accuracy" in run.data.metrics
            for curve in ("loss/train", "loss/validation", "gap/accuracy"):
                assert project.steps(run, curve, uri) == [1, 2]
        client = project.mlflow(uri)
        assert len(client.search_model_versions(f"name = '{NAME}'")) == 4
        champion = client.get_model_version_by_alias(NAME, "champion")
        files = {item.path for item in client.list_artifacts(str(champion.run_id), "pipeline")}
        assert files >= {"pipeline/params.yaml", "pipeline/dvc.lock"}
        assert len(runs) == 4
        assert not (project.path / "mlflow.db").exists()
    report("4 experiments at once into an MLflow server on PostgreSQL: 4 whole runs")


def readable(folder: Path) -> Path:
    folder.chmod(0o755)
    return folder
