"""Trainings that did not come to their end: the record says so, whatever is done next."""

import os
import signal

from .conftest import Project, wait_until, write_params, zygote


def killed_midway(project: Project) -> str:
    """Start a training, and kill it when its run has points; the run's id."""
    log = project.path.parent / "killed.log"
    known = {run.info.run_id for run in project.runs()}
    pid = project.start_stage("train", log, log)

    def streaming() -> list[str]:
        return [
            run.info.run_id
            for run in project.runs()
            if "loss/test" in run.data.metrics and run.info.run_id not in known
        ]

    wait_until(streaming)
    (run_id,) = streaming()
    os.kill(pid, signal.SIGKILL)
    assert zygote().wait(pid) == -signal.SIGKILL
    return run_id


def test_a_training_killed_and_given_up_is_told_and_its_run_does_not_stay_running(pipeline_copy: Project) -> None:
    before = pipeline_copy.params()
    pipeline_copy.shrink({"train.epochs": 5000})
    run_id = killed_midway(pipeline_copy)
    client = pipeline_copy.mlflow()
    assert client.get_run(run_id).info.status == "RUNNING"
    told = pipeline_copy.run("lenet5", "doctor", check=False).stdout
    assert "note    trainings did not end: relu-avg-adamw-0.002-5000ep-seed0 (" in told
    write_params(pipeline_copy.path, before)
    pipeline_copy.stage("register")
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert "its process was killed" in run.data.tags["failure"]


def test_one_that_diverges_at_once_leaves_a_failed_run_and_promises_nothing(pipeline_copy: Project) -> None:
    pipeline_copy.edit({"train.optimizer": "sgd", "train.lr": 1e30})
    done = pipeline_copy.run("python", "stages/train.py", check=False)  # which imports mlflow while it trains
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "learning rate 1e+30" in line, done.stderr
    assert pipeline_copy.runs()[-1].info.status == "FAILED"


def test_a_run_at_chance_says_so_on_its_page_while_it_runs(pipeline_copy: Project) -> None:
    pipeline_copy.shrink({"train.epochs": 5000, "train.optimizer": "sgd", "train.lr": 1.0e-5})
    log = pipeline_copy.path.parent / "train.log"
    pid = pipeline_copy.start_stage("train", log, log)

    def description() -> str:
        return str(pipeline_copy.runs()[-1].data.tags.get("mlflow.note.content", ""))

    wait_until(lambda: "at chance since epoch 1," in description())
    run = pipeline_copy.runs()[-1]
    assert run.info.status == "RUNNING"
    assert "Try a larger `train.lr`" in description()
    os.kill(pid, signal.SIGINT)
    assert zygote().wait(pid) == 130
    assert description() == "Training did not end: KeyboardInterrupt"
