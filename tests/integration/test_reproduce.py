"""A recorded result made again, beside the person's own workspace and record."""

import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from .conftest import Project, wait_until

CHAMPION = "models:/lenet5-fashionmnist@champion"


def worktrees(project: Project) -> list[str]:
    return project.run("git", "worktree", "list").stdout.splitlines()


@pytest.fixture(params=["a repository", "a folder of one"])
def anywhere(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Project:
    """A project with a result, as one has it by itself and as one has it beside others' work."""
    if request.param == "a folder of one":
        shutil.rmtree(project.path / ".git")
        folder = tmp_path / "everybody's" / "卷积 lenet"
        folder.parent.mkdir()
        project = Project(project.path.rename(folder), Path(project.env["FASHION_MNIST_DIR"]))
        project.run("git", "init", "--quiet", str(folder.parent))
        project.commit()
    project.shrink({"train.epochs": 1})
    (project.path / "src/lenet5/new.py").write_text("# code that git does not know yet\n")
    project.repro()
    return project


@pytest.mark.soak
def test_a_recorded_result_is_reproduced_byte_for_byte(anywhere: Project) -> None:
    (run,) = anywhere.runs()
    before = anywhere.run("git", "status", "--porcelain").stdout
    done = anywhere.run("lenet5", "reproduce", run.info.run_id, FASHION_MNIST_DIR="gone by now")
    assert "weights: identical, byte for byte" in done.stdout
    assert "test_accuracy" in done.stdout
    figures = [line.split() for line in done.stdout.splitlines() if line.startswith("│") and "accuracy" in line]
    assert figures
    assert all(words[7] == "same" for words in figures), figures
    assert len(anywhere.runs()) == 1
    assert anywhere.run("git", "status", "--porcelain").stdout == before
    assert len(worktrees(anywhere)) == 1
    assert not Path(done.stdout.split("restored in ")[1].splitlines()[0]).exists()
    unknown = anywhere.run("lenet5", "reproduce", "0" * 32, check=False)
    assert unknown.returncode == 1
    assert "not found" in unknown.stderr


@pytest.mark.soak
def test_one_that_is_ended_leaves_no_worktree_and_nothing_that_computes(pipeline_copy: Project) -> None:
    with pipeline_copy.started("lenet5", "reproduce", CHAMPION) as process:
        started = psutil.Process(process.pid)

        def trains() -> bool:
            for one in started.children(recursive=True):
                with suppress(psutil.Error):  # it has just ended
                    if "stages/train.py" in one.cmdline():
                        return True
            return False

        wait_until(trains)
        family = started.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "lenet5 reproduce: ended by SIGTERM" in output
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert len(worktrees(pipeline_copy)) == 1
