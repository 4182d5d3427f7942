"""Several seeds at once, through the command a person gives."""

import statistics

from scipy.stats import t

from .conftest import Project


def test_three_seeds_are_one_run_with_three_children_and_the_outs_stay(pipeline_copy: Project) -> None:
    project = pipeline_copy
    project.shrink({"train.epochs": 1, "train.seed": 5})
    before, earlier = project.run("dvc", "status", "--json").stdout, len(project.runs())
    done = project.run("python", "-m", "lenet5.seeds", "--count", "3")
    assert project.run("dvc", "status", "--json").stdout == before
    parent, *children = project.runs()[earlier:]
    assert parent.info.run_id in done.stdout
    assert [run.info.run_name for run in children] == ["seed-5", "seed-6", "seed-7"]
    assert [run.data.params["train.seed"] for run in children] == ["5", "6", "7"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert all(project.steps(run, "loss/test") == [1] for run in children)
    for name in ("test_accuracy", "validation_loss", "gap_loss", "gap_accuracy"):
        values = [run.data.metrics[f"final/{name}"] for run in children]
        assert len(set(values)) > 1
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        low, high = t.interval(0.95, 2, mean, deviation / 3**0.5)
        for kind, expected in (("mean", mean), ("deviation", deviation), ("low", low), ("high", high)):
            assert abs(parent.data.metrics[f"{kind}/{name}"] - expected) < 1e-9
        assert f"{mean:.4f}" in done.stdout


def test_arguments_that_make_no_sense_are_one_line(project: Project) -> None:
    for arguments, told in (
        (["--count", "1"], "seeds: --count 1: a spread needs at least 2 seeds"),
        (["--count", "many"], "seeds: argument --count: invalid int value: 'many'"),
        ([], "seeds: the following arguments are required: --count"),
    ):
        done = project.run("python", "-m", "lenet5.seeds", *arguments, check=False)
        assert (done.returncode, done.stderr) == (1, told + "\n")
