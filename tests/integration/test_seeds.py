"""Several seeds at once, through the command a person gives."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import joblib
import psutil
import pytest
from mlflow.entities import Run
from scipy.stats import t

from lenet5.processors import SLOWED

from .conftest import TRACEBACK, Project, ctrl_c, least_disturbed, wait_until

HELP = "`lenet5 seeds --help` has an example"


def small(project: Project, changes: dict[str, Any]) -> Project:
    project.shrink({"train.epochs": 1} | changes)
    project.link_data()
    project.commit()
    return project


def files(project: Project) -> dict[str, bytes]:
    """What a person has in the folder, but for the record and what the commands keep for themselves."""
    own = (".lenet5", ".git", "mlruns", "mlflow.db")
    return {
        str(path): path.read_bytes()
        for path in project.path.rglob("*")
        if path.is_file() and not str(path.relative_to(project.path)).startswith(own) and path.suffix != ".pyc"
    }


def test_three_seeds_are_one_run_with_three_children_and_the_outs_stay(project: Project) -> None:
    small(project, {"train.seed": 5})
    before = files(project)
    done = project.run("lenet5", "seeds", "--count", "3")
    assert files(project) == before
    (parent,), children = divided(project)
    assert parent.info.run_id in done.stdout
    assert [run.info.run_name for run in children] == ["seed-5", "seed-6", "seed-7"]
    assert [run.data.params["train.seed"] for run in children] == ["5", "6", "7"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert all(project.steps(run, "loss/test") == [1] for run in children)
    for name in ("test_accuracy", "validation_loss", "gap_loss", "gap_accuracy"):
        values = [run.data.metrics[name] for run in children]
        assert len(set(values)) > 1
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        low, high = t.interval(0.95, 2, mean, deviation / 3**0.5)
        for kind, expected in (("", mean), ("_deviation", deviation), ("_low", low), ("_high", high)):
            assert abs(parent.data.metrics[f"{name}{kind}"] - expected) < 1e-4  # the record has six digits
        assert f"{mean:.4f}" in done.stdout

    # The same again trains nothing, and adds nothing; one more trains one.
    again = project.run("lenet5", "seeds", "--count", "3")
    first, second = (
        sorted(line for line in one.stdout.splitlines() if not line.startswith(SLOWED)) for one in (done, again)
    )
    assert second == first
    assert len(project.runs()) == 1 + 3
    project.run("lenet5", "seeds", "--count", "4")
    assert len(project.runs()) == 1 + 3 + 1 + 4
    (kept,) = (project.path / ".lenet5/seeds").glob("*.jsonl")
    assert kept.read_text().count('"seed"') == 4


def divided(project: Project) -> tuple[list[Run], list[Run]]:
    """Parents, and children by their seeds."""
    runs = sorted(project.runs(), key=lambda run: int(run.data.tags.get("seed", -1)))
    of = "mlflow.parentRunId"
    return [run for run in runs if of not in run.data.tags], [run for run in runs if of in run.data.tags]


def finished_seeds(output: Iterator[str]) -> Iterator[str]:
    return (line for line in output if line.startswith("seed "))


def test_ctrl_c_keeps_the_seeds_that_have_finished_and_a_killed_worker_costs_its_own(project: Project) -> None:
    small(project, {"train.epochs": 3, "train.seed": 1})
    command = ("lenet5", "seeds", "--count", "5")
    with project.started(*command) as process:
        assert process.stdout is not None
        first = next(finished_seeds(process.stdout))
        wait_until(lambda: "FINISHED" in [run.info.status for run in divided(project)[1]])  # recorded as it ends
        _, told = ctrl_c(process)
    assert process.returncode == 130
    assert "interrupted; seeds that have finished are kept, and the same command goes on" in told
    assert TRACEBACK not in told
    ended = [first, *finished_seeds(iter(told.splitlines()))]
    (parent,), _ = divided(project)
    assert parent.info.status == "KILLED"

    with project.started(*command) as process:
        workers = psutil.Process(process.pid)
        wait_until(lambda: len(of_seeds(workers)) == 1 + joblib.cpu_count(), seconds=60)
        time.sleep(1)
        of_seeds(workers)[-1].kill()
        told = process.communicate()[0]
    assert process.returncode == 0, told
    assert "its process ended (killed by SIGKILL); it starts again" in told
    assert TRACEBACK not in told
    (again,), children = divided(project)
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "FINISHED")
    assert [run.info.run_name for run in children] == [f"seed-{seed}" for seed in range(1, 6)]
    assert all(project.steps(run, "loss/test") == [1, 2, 3] for run in children)
    assert {line.strip() for line in ended} <= set(told.splitlines())


@pytest.mark.soak
@pytest.mark.alone
def test_ctrl_c_ends_within_two_seconds(project: Project) -> None:
    small(project, {"train.epochs": 3})
    seen: set[str] = set()

    def pressed() -> float:
        with project.started("lenet5", "seeds", "--count", "9") as process:
            assert process.stdout is not None
            seen.add(next(line for line in finished_seeds(process.stdout) if line not in seen))
            return ctrl_c(process)[0]

    assert least_disturbed(pressed) < 2
    assert len(seen) == 3


def of_seeds(driver: psutil.Process) -> list[psutil.Process]:
    """The processes that `lenet5 seeds` has started: multiprocessing's own tracker comes first."""
    return sorted(driver.children(), key=lambda process: process.create_time())


def test_arguments_that_make_no_sense_are_one_line(project: Project) -> None:
    for arguments, told in (
        (["--count", "1"], "lenet5 seeds: --count 1: a spread needs at least 2 seeds"),
        (["--count", "many"], f"lenet5 seeds: argument --count: invalid int value: 'many'; {HELP}"),
        ([], f"lenet5 seeds: the following arguments are required: --count; {HELP}"),
    ):
        done = project.run("lenet5", "seeds", *arguments, check=False)
        assert (done.returncode, done.stderr) == (1, told + "\n")
