"""A sweep through the command a person gives: recorded once, whoever is killed meanwhile."""

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml
from mlflow.entities import Run

from lenet5.data.fashion_mnist import RAW_DIR, TEST_IMAGES, TEST_LABELS

from .conftest import Project, ctrl_c, wait_until
from .servers import free_port, http_server, mlflow_server, postgresql
from .test_team import readable

PLAN: dict[str, Any] = {
    "trials": 3,
    "workers": 2,
    "objective": "validation_loss",
    "prune": False,
    "fixed": {"train.epochs": 2, "train.batch_size": 100},
    "space": {"train.lr": {"low": 0.001, "high": 0.01, "log": True}, "model.activation": ["relu", "tanh"]},
}


@pytest.fixture
def sweep(project: Project) -> Project:
    """A project with data but for the test images, which no trial may need, and a sweep's file."""
    project.link_data()
    for name in (TEST_IMAGES, TEST_LABELS):
        (project.path / RAW_DIR / name).unlink()
    project.shrink({})
    write(project, {})
    return project


def write(project: Project, changes: dict[str, Any], name: str = "tiny") -> None:
    (project.path / f"sweeps/{name}.yaml").write_text(yaml.safe_dump(PLAN | changes, sort_keys=False))


def run(project: Project, name: str = "tiny", check: bool = True) -> subprocess.CompletedProcess[str]:
    return project.run("lenet5", "sweep", "run", f"sweeps/{name}.yaml", check=check)


def trials(project: Project, uri: str | None = None) -> list[Run]:
    children = [one for one in project.runs(uri) if "trial" in one.data.tags]
    return sorted(children, key=lambda one: int(one.data.tags["trial"]))


def steps(project: Project, uri: str | None = None) -> list[list[int]]:
    return [project.steps(one, "loss/validation", uri) for one in trials(project, uri)]


def test_a_sweep_is_one_run_with_a_child_a_trial(sweep: Project) -> None:
    done = run(sweep)
    assert sum(line.startswith("trial ") for line in done.stdout.splitlines()) == 3
    children = trials(sweep)
    assert [one.info.status for one in children] == ["FINISHED"] * 3
    assert steps(sweep) == [[1, 2]] * 3
    assert all(not any("test" in name for name in one.data.metrics) for one in children)
    (parent,) = [one for one in sweep.runs() if "sweep" in one.data.tags]
    assert {one.data.tags["mlflow.parentRunId"] for one in children} == {parent.info.run_id}
    best = min(children, key=lambda one: float(one.data.metrics["validation_loss"]))
    assert parent.data.tags["best_trial"] == best.data.tags["trial"]
    assert parent.data.metrics["validation_loss"] == best.data.metrics["validation_loss"]
    files = {file.path for file in sweep.mlflow().list_artifacts(parent.info.run_id)}
    assert {"tiny.yaml", "leaderboard.md", "history.png", "importance.png", "parallel.png", "slices.png"} <= files
    assert "`lenet5 sweep run` with tiny.yaml goes on" in parent.data.tags["mlflow.note.content"]

    shown = sweep.run("lenet5", "sweep", "show", "tiny").stdout
    assert f"{best.data.metrics['validation_loss']:.4f}" in shown
    write(sweep, {"trials": 4})  # more of them is the same sweep
    (sweep.path / "mlflow.db").unlink()
    shutil.rmtree(sweep.path / "mlruns")
    assert "3 of 4 trials are done" in run(sweep).stdout
    renamed = shutil.copy(sweep.path / "mlflow.db", sweep.path / "another.db")  # this process has the old one open
    again = trials(sweep, f"sqlite:///{renamed}")  # those of before, too: from the journal
    assert steps(sweep, f"sqlite:///{renamed}") == [[1, 2]] * 4
    for before, now in zip(children, again, strict=False):
        assert (now.info.status, now.data.params) == ("FINISHED", before.data.params)
        assert now.data.metrics == before.data.metrics
        assert (now.info.start_time, now.info.end_time) == (before.info.start_time, before.info.end_time)
        assert now.info.start_time < now.info.end_time


def test_one_that_is_interrupted_has_on_record_how_it_stands_and_what_goes_on_with_it(sweep: Project) -> None:
    write(sweep, {"fixed": {"train.epochs": 60}, "trials": 2})
    journal = sweep.path / ".lenet5/sweeps/tiny.journal"
    with sweep.started("lenet5", "sweep", "run", "sweeps/tiny.yaml") as process:
        wait_until(lambda: journal.exists() and '"row 2"' in journal.read_text())
        wait_until(lambda: (sweep.path / "mlflow.db").exists() and len(sweep.runs()) == 3)
        _, told = ctrl_c(process)
    assert (process.returncode, told.splitlines()[-1]) == (
        130, "lenet5 sweep: interrupted; the same command goes on where it stopped"
    )  # fmt: skip
    (parent,) = [one for one in sweep.runs() if "sweep" in one.data.tags]
    assert parent.info.status == "KILLED"
    assert {one.data.tags["trial.state"] for one in trials(sweep)} == {"unfinished"}
    files = {file.path for file in sweep.mlflow().list_artifacts(parent.info.run_id)}
    assert files - {"pipeline"} == {"tiny.yaml", "leaderboard.md"}  # no pictures: they would take seconds


@pytest.mark.soak
def test_a_sweeps_winner_is_put_to_the_test(sweep: Project) -> None:
    sweep.edit({"train.epochs": 1, "train.optimizer": "sgd", "train.lr": 1.0e-5})  # a model that stays at chance
    write(sweep, {"trials": 1, "fixed": {"train.optimizer": "adamw", "train.epochs": 3}})
    run(sweep)
    early = sweep.run("lenet5", "sweep", "recipe", "tiny", check=False)
    assert (early.returncode, early.stderr) == (
        1, "lenet5 sweep: sweep tiny: its winner may have been lucky; `lenet5 sweep confirm tiny` tells\n"
    )  # fmt: skip
    done = sweep.run("lenet5", "sweep", "confirm", "tiny", "--seeds", "3")
    assert "7 of 7: trial" in done.stdout
    assert "yes" in done.stdout
    (parent,) = [one for one in sweep.runs() if "sweep" in one.data.tags]
    assert parent.data.tags["confirmed"] == "0"
    assert 1 < parent.data.metrics["gain_low"] < parent.data.metrics["gain_kept"] < 2.3  # nats, of ln 10 at chance
    assert "| 0 |" in (sweep.path / "sweeps/tiny.md").read_text()
    again = sweep.run("lenet5", "sweep", "confirm", "tiny", "--seeds", "3")
    assert "of 7: trial" not in again.stdout
    sweep.run("lenet5", "sweep", "recipe", "tiny")
    around = sweep.params()
    sweep.edit({"train.batch_size": 77, "train.seed": 5})  # of another who takes the recipe up
    sweep.run("lenet5", "recipe", "recipes/tiny.yaml")
    now = sweep.params()["train"]
    assert (now["optimizer"], now["batch_size"], now["seed"]) == ("adamw", around["train"]["batch_size"], 5)


def test_whoever_is_killed_the_same_command_goes_on(sweep: Project, tmp_path: Path) -> None:
    write(sweep, {"fixed": {"train.epochs": 120}, "trials": 2})
    log = tmp_path / "log"
    journal = sweep.path / ".lenet5/sweeps/tiny.journal"
    command = ("lenet5", "sweep", "run", "sweeps/tiny.yaml")
    with log.open("w") as output, sweep.started(*command, output=output) as driver:
        wait_until(lambda: journal.exists() and journal.read_text().count('"row 3"') == 2)
        workers = [one for one in psutil.Process(driver.pid).children() if "spawn_main" in " ".join(one.cmdline())]
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        wait_until(lambda: "killed by SIGKILL); it starts again" in log.read_text())
        second = run(sweep, check=False)
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr == "lenet5 sweep: sweep tiny: another process is at it; wait for its end, or end it\n"
        left = psutil.Process(driver.pid).children()
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        _, alive = psutil.wait_procs(left, timeout=60)
        assert alive == []
    done = run(sweep)
    assert "sweep tiny goes on: 0 of 2 trials are done, 2 start again" in done.stdout
    assert [one.info.status for one in trials(sweep)] == ["FINISHED"] * 2
    assert steps(sweep) == [list(range(1, 121))] * 2
    assert len(sweep.runs()) == 3


@pytest.mark.soak
def test_a_server_and_its_database_that_go_and_come_back_lose_and_double_no_point(
    sweep: Project, tmp_path: Path
) -> None:
    epochs = 120
    write(sweep, {"trials": 6, "fixed": {"train.epochs": epochs, "train.batch_size": 100}})
    log, port, database_port = tmp_path / "log", free_port(), free_port()
    uri, journal = f"http://127.0.0.1:{port}", sweep.path / ".lenet5/sweeps/tiny.journal"

    def rows() -> int:
        return journal.read_text().count('"row ') if journal.exists() else 0

    def while_the_sweep_goes_on() -> None:
        before, said = rows(), log.read_text().count("MLflow is behind")
        wait_until(lambda: rows() > before + 20 and log.read_text().count("MLflow is behind") > said)
        assert driver.poll() is None, log.read_text()

    def until_it_has_caught_up() -> None:
        said = log.read_text().count("MLflow is back")
        wait_until(lambda: log.read_text().count("MLflow is back") > said or driver.poll() is not None)
        assert driver.poll() is None, log.read_text()

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, log.open("w") as output:
        database, server = (stack.enter_context(ExitStack()) for _ in range(2))
        command = ("lenet5", "sweep", "run", "sweeps/tiny.yaml")
        driver = stack.enter_context(sweep.started(*command, output=output, MLFLOW_TRACKING_URI=uri))

        def start_database() -> str:
            return database.enter_context(postgresql(readable(Path(folder)) / "postgresql", database_port))

        backend = start_database()

        def start_server() -> None:
            server.enter_context(mlflow_server(sweep, tmp_path / "server", port, backend))

        while_the_sweep_goes_on()
        start_server()
        until_it_has_caught_up()
        server.close()
        while_the_sweep_goes_on()
        start_server()
        until_it_has_caught_up()
        database.close()
        while_the_sweep_goes_on()
        start_database()
        assert driver.wait(400) == 0, log.read_text()
        told = log.read_text()
        assert told.count("MLflow is behind") == told.count("MLflow is back") == 3, told
        assert_whole(sweep, 6, epochs, uri)
    assert not (sweep.path / "mlflow.db").exists()


def assert_whole(project: Project, count: int, epochs: int, uri: str) -> None:
    """The record of a sweep in which nothing was pruned: every run once and ended, every point of its curves once."""
    children, everybody = trials(project, uri), project.runs(uri)
    (parent,) = [one for one in everybody if "sweep" in one.data.tags]
    assert len(everybody) == 1 + count
    assert [one.data.tags["trial"] for one in children] == [str(number) for number in range(count)]
    assert {one.info.status for one in everybody} == {"FINISHED"}
    assert {one.data.tags["trial.state"] for one in children} == {"complete"}
    assert {one.data.tags["mlflow.parentRunId"] for one in children} == {parent.info.run_id}
    for one in children:
        curves = [name for name in one.data.metrics if "/" in name]
        assert len(curves) > 5
        for curve in curves:
            assert project.steps(one, curve, uri) == list(range(1, epochs + 1)), curve
    assert parent.data.metrics["trials_complete"] == count
    assert parent.data.tags["best_trial"] in {one.data.tags["trial"] for one in children}
    assert "leaderboard.md" in {file.path for file in project.mlflow(uri).list_artifacts(parent.info.run_id)}


@pytest.mark.soak
def test_answers_of_a_server_that_get_lost_on_the_way_double_neither_run_nor_point(
    sweep: Project, tmp_path: Path
) -> None:
    lost: set[bytes] = set()

    def forward(handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "host"}
        response = requests.request(
            handler.command, f"{uri}{handler.path}", data=body, headers=headers, timeout=60, allow_redirects=False
        )
        if handler.command == "POST" and "search" not in handler.path and body not in lost:
            lost.add(body)  # it was done, and nobody hears of it: MLflow's client asks for it again
            return
        handler.send_response(response.status_code)
        for name in ("Content-Type", "Location"):
            if name in response.headers:
                handler.send_header(name, response.headers[name])
        handler.send_header("Content-Length", str(len(response.content)))
        handler.end_headers()
        handler.wfile.write(response.content)

    with mlflow_server(sweep, tmp_path / "server", free_port()) as uri, http_server(forward) as way:
        done = sweep.run("lenet5", "sweep", "run", "sweeps/tiny.yaml", MLFLOW_TRACKING_URI=way)
        assert len(lost) > 10, f"{done.stdout}{done.stderr}"
        assert_whole(sweep, 3, 2, uri)


def test_what_is_wrong_is_one_line_and_nothing_is_lost(sweep: Project) -> None:
    write(sweep, {"trials": 1, "fixed": {"train.epochs": 1}})
    run(sweep)
    journal = sweep.path / ".lenet5/sweeps/tiny.journal"
    before = journal.read_bytes()
    write(sweep, {"trials": 2, "fixed": {"train.epochs": 3}})
    write(sweep, {"objective": "test_accuracy"}, "tempted")
    write(sweep, {"space": {"train.engine": ["eager", "graph"]}}, "elsewhere")
    for name, told in {
        "tiny": "sweep tiny began otherwise: train.epochs was 1, is 3; put that back, or give this sweep",
        "tempted": "sweeps/tempted.yaml: objective: 'test_accuracy' is not allowed",
        "elsewhere": "train.engine: graph is for CUDA devices",
        "none": "sweeps/none.yaml: no such file",
    }.items():
        done = run(sweep, name, check=False)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"lenet5 sweep: {told}")
    assert journal.read_bytes() == before
    assert sorted(path.stem for path in journal.parent.glob("*.journal")) == ["tiny"]
    shown = sweep.run("lenet5", "sweep", "show", "none", check=False)
    assert (shown.returncode, shown.stderr) == (1, "lenet5 sweep: none: no such sweep here; there is tiny\n")
