"""Several checkouts, one environment: each runs the code that lies in it, and a result is recorded with that code."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from .conftest import TRACEBACK, Project

WHERE = """
from beside import run_stage

import multiprocessing
import os
import subprocess
import sys

import lenet5.errors


def where(_):
    return lenet5.errors.__file__


def main(params):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(where, [None])[0])
    print(where(None))
    asks = [sys.executable, "-c", "import lenet5.errors; print(lenet5.errors.__file__)"]
    print(subprocess.run(asks, cwd="/", capture_output=True, text=True, check=True).stdout.strip())


if __name__ == "__main__":
    run_stage("where", main)
"""


def mark(project: Project, error: float) -> None:
    """Make the code another: its stage kernel_check says how large ``error`` is, whatever it learned."""
    path = project.path / "src/lenet5/network/edge_kernel.py"
    learned = r"(return LearnedKernel\(seed, conv\.weight\.detach\(\)\.numpy\(\)\[0, 0\], ).*(, losses\))"
    text, count = re.subn(learned, rf"\g<1>{error}\g<2>", path.read_text())
    assert count == 1
    path.write_text(text)


def marked(text: str) -> float:
    return float(json.loads(text)["largest_error"])


@pytest.fixture(params=["a_main_workspace", "what_is_there"])
def installed(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Project:
    """A workspace whose environment has the package of another checkout, as an editable install has it, or any."""
    del project.env["PYTHONPATH"]
    if request.param == "a_main_workspace":
        other = project.copy(tmp_path / "other")
        mark(other, 9e-5)
        project.env["PYTHONPATH"] = str(other.path / "src")
    return project


def test_a_queued_experiment_runs_the_code_it_records(project: Project) -> None:
    project.env["PYTHONPATH"] = str(project.path / "src")  # the workspace's package is the installed one
    mark(project, 1e-5)
    project.run("dvc", "exp", "run", "--queue", "--name", "first", "kernel_check")
    mark(project, 2e-5)
    project.run("dvc", "exp", "run", "--queue", "--name", "second", "kernel_check")
    mark(project, 3e-5)
    project.start_queue(1)
    project.wait_for_queue(2)
    for name, error in (("first", 1e-5), ("second", 2e-5)):
        ref = project.run("git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}").stdout.strip()
        assert marked(project.run("git", "show", f"{ref}:metrics/kernel_check.json").stdout) == error
        assert f"{error}, losses" in project.run("git", "show", f"{ref}:src/lenet5/network/edge_kernel.py").stdout
    project.repro("kernel_check")
    assert marked((project.path / "metrics/kernel_check.json").read_text()) == 3e-5


def test_a_worktree_and_a_copy_run_their_own_code(installed: Project, tmp_path: Path) -> None:
    copy = installed.copy(tmp_path / "copy of it")
    installed.run("git", "worktree", "add", "--quiet", str(tmp_path / "worktree"))
    worktree = Project(tmp_path / "worktree", tmp_path)
    for number, one in enumerate((copy, worktree), start=1):
        one.env = installed.env
        mark(one, number * 1e-5)
        one.repro("kernel_check")
        assert marked((one.path / "metrics/kernel_check.json").read_text()) == number * 1e-5


def test_what_a_stage_starts_runs_the_package_beside_it_too(installed: Project) -> None:
    (installed.path / "stages/where.py").write_text(WHERE)
    said = installed.run("python", "stages/where.py").stdout.split()
    assert said == [str(installed.path / "src/lenet5/errors.py")] * 3


def test_a_stage_called_from_another_checkout_is_refused_in_one_line(project: Project, tmp_path: Path) -> None:
    other = project.copy(tmp_path / "other")
    done = other.run("python", str(project.path / "stages/kernel_check.py"), check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{other.path}/src/lenet5, not {project.path}/src/lenet5" in line
    assert TRACEBACK not in done.stderr


def test_the_command_is_that_of_the_checkout_it_is_called_in(project: Project, tmp_path: Path) -> None:
    other = project.copy(tmp_path / "other")
    path = other.path / "src/lenet5/commands/recipe.py"
    path.write_text(path.read_text().replace("no such file; ", "nothing of this name; "))
    other.env["PYTHONPATH"] = str(project.path / "src")
    assert "nothing of this name" in other.run("lenet5", "recipe", "none", check=False).stderr
    assert "no such file" in project.run("lenet5", "recipe", "none", check=False).stderr


def files_of(project: Project) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (project.path / "mlruns").rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["copy", "a copy, 100 % (旧)"])
def test_a_copied_workspace_writes_into_its_own_record_and_reads_it(
    pipeline_copy: Project, tmp_path: Path, name: str
) -> None:
    pipeline_copy.stage("register")
    copy = pipeline_copy.copy(tmp_path / name)
    before = files_of(pipeline_copy)
    evaluation = copy.json("evaluation") | {"calibration_error": 0.125}
    (copy.path / "metrics/evaluation.json").write_text(json.dumps(evaluation))
    copy.stage("register")
    assert files_of(pipeline_copy) == before
    for run in copy.runs():
        assert copy.mlflow().list_artifacts(run.info.run_id, "plots")
        assert list((copy.path / "mlruns").rglob(f"{run.info.run_id}/artifacts/plots"))
    assert len(pipeline_copy.runs()) == 1


def test_a_renamed_workspace_keeps_its_record_and_leaves_nothing_at_the_old_place(
    pipeline_copy: Project, tmp_path: Path
) -> None:
    pipeline_copy.stage("register")
    renamed = Project(pipeline_copy.path.rename(tmp_path / "renamed"), tmp_path)
    done = renamed.run("lenet5", "compare", "champion", renamed.runs()[0].info.run_id)
    assert "Neither is better" in done.stdout
    renamed.stage("register")
    assert not pipeline_copy.path.exists()


def test_line_ends_are_the_same_in_every_clone(project: Project, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    settings = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]  # as Git for Windows has it
    project.run("git", *settings, "clone", "--quiet", str(project.path), str(clone))
    for name in project.run("git", "ls-files").stdout.splitlines():
        assert (clone / name).read_bytes() == (project.path / name).read_bytes(), name


def test_make_works_in_a_clone_of_a_git_that_writes_crlf(project: Project, tmp_path: Path) -> None:
    project.run("git", "clone", "--quiet", "-c", "core.autocrlf=true", str(project.path), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", tmp_path)
    assert "repro     run what changed" in clone.run("make", "help").stdout
    assert "\ndvc repro\n" in clone.run("make", "--dry-run", "repro").stdout
    clone.run("bash", "-c", "! (make help; make --dry-run repro) | grep $'\\r'")
    assert clone.run("git", "status", "--porcelain").stdout == ""


@pytest.fixture
def download(project: Project) -> Project:
    """The repository's files, as a ZIP download has them."""
    shutil.rmtree(project.path / ".git")
    project.env["GIT_CEILING_DIRECTORIES"] = str(project.path.parent)
    return project


def commands_of(message: str) -> list[str]:
    return [line.strip() for line in message.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("target", ["repro", "test"])
def test_a_download_without_git_is_refused_before_anything_is_installed(download: Project, target: str) -> None:
    begin = time.monotonic()
    done = download.run("make", target, "PYTHON=false", check=False)
    assert time.monotonic() - begin < 5
    assert done.returncode == 2
    assert "No git repository here" in done.stderr
    assert not (download.path / ".venv").exists()
    assert "`git init`" in download.run("lenet5", "doctor", check=False).stdout


@pytest.mark.parametrize("number", [0, 1], ids=["with git", "without git"])
def test_what_the_refusal_says_lets_the_pipeline_run(download: Project, number: int) -> None:
    said = commands_of(download.run("make", "repro", check=False).stderr)
    assert len(said) == 2
    download.run("bash", "-c", said[number])
    assert "python -m venv" in download.run("make", "--dry-run", "repro", "PYTHON=python").stdout
    assert download.repro("kernel_check") == ["kernel_check"]
    (line,) = [line for line in download.run("lenet5", "doctor").stdout.splitlines() if line.split()[1] == "git"]
    assert line.startswith("note    git       not used, as core.no_scm") == (number == 1)


@pytest.mark.soak
def test_a_result_of_a_workspace_without_git_says_that_no_commit_made_it(download: Project) -> None:
    download.run("dvc", "config", "--local", "core.no_scm", "true")
    download.shrink({"train.epochs": 1})
    download.repro()
    (run,) = download.runs()
    assert not {"git.dirty", "mlflow.source.git.commit"} & set(run.data.tags)
    card = Path(download.mlflow().download_artifacts(run.info.run_id, "reports/model_card.md", str(download.path)))
    assert "none: recorded without git" in card.read_text()
    done = download.run("lenet5", "reproduce", run.info.run_id, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"lenet5 reproduce: run {run.info.run_id} was recorded without git: no commit says which code it ran\n"
    )
