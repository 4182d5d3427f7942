import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lenet5.commands import reproduce
from lenet5.errors import UserError
from lenet5.files import digest
from lenet5.outs import EVALUATION, WEIGHTS
from lenet5.record.lineage import read_code
from lenet5.record.reading import Recorded

GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"} | {
    f"GIT_{who}_{what}": "a.person@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(params=[".", "teams/größer als 1"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a pipeline that is a repository, or lies in a folder of one."""
    for name, value in GIT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder: Path = tmp_path / "repository" / request.param
    (folder / "src").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in ("params.yaml", "src/code.py"):
        (folder / name).write_text("first\n")
    git("init", "--quiet", str(tmp_path / "repository"))
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    return folder


@pytest.fixture
def recorded(workspace: Path, tmp_path: Path) -> Callable[..., Recorded]:
    """The result of code and params as they are now."""

    def record(**other: str) -> Recorded:
        code = read_code()
        changes, params = tmp_path / "changes.diff", tmp_path / "params.yaml"
        changes.write_text(other.get("diff", f"{code.diff}\n"))
        params.write_bytes((workspace / "params.yaml").read_bytes())
        diff = changes if changes.read_text().strip() else None
        return Recorded("0" * 32, "a-run", other.get("commit", code.commit), params, diff, {}, "")

    return record


def nothing_is_left(tmp_path: Path) -> bool:
    return len(git("worktree", "list").splitlines()) == 1 and not list((tmp_path / "temporary").iterdir())


def restore(run: Recorded) -> None:
    with reproduce.restored(run):
        pass


def test_code_and_params_of_a_run_are_there_again_and_nothing_is_left_of_them(
    workspace: Path, recorded: Callable[..., Recorded], tmp_path: Path
) -> None:
    changes = {"params.yaml": "second\n", "src/code.py": "second\n", "src/new.py": "new\n"}
    for name, content in changes.items():
        (workspace / name).write_text(content)
    run = recorded()
    git("stash", "--include-untracked")
    with reproduce.restored(run) as restored:
        assert restored != workspace
        assert {name: (restored / name).read_text() for name in changes} == changes
    assert (workspace / "src/code.py").read_text() == "first\n"
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"commit": ""}, "recorded without git"),
        ({"commit": "0" * 40}, "is not in this repository"),
        ({"diff": "no diff\n"}, "do not apply"),
    ],
)
def test_a_run_that_cannot_be_restored_is_told_and_nothing_is_left(
    recorded: Callable[..., Recorded], tmp_path: Path, other: dict[str, str], said: str
) -> None:
    run = recorded(**other)
    with pytest.raises(UserError, match=said), reproduce.restored(run):
        pass
    assert nothing_is_left(tmp_path)


def test_a_pipeline_that_was_not_there_yet_is_told(
    workspace: Path, recorded: Callable[..., Recorded], tmp_path: Path
) -> None:
    git("rm", "--quiet", "params.yaml")
    git("commit", "--quiet", "--message", "without")
    (workspace / "params.yaml").write_text("later\n")
    with pytest.raises(UserError, match="holds no pipeline"), reproduce.restored(recorded()):
        pass
    assert nothing_is_left(tmp_path)


def test_what_keeps_git_from_restoring_a_commit_is_told_in_its_own_words(
    workspace: Path, recorded: Callable[..., Recorded], tmp_path: Path
) -> None:
    run = recorded()
    in_the_way = tmp_path / "repository/.git/worktrees"
    in_the_way.write_text("a file")
    with pytest.raises(UserError, match=r"^commit \w+ cannot be restored in \S+: fatal: .*Not a directory$"):
        restore(run)
    in_the_way.unlink()
    (tmp_path / "repository/.git").rename(tmp_path / "repository/moved")
    with pytest.raises(UserError, match="fatal: not a git repository"):
        restore(run)
    assert workspace.is_dir()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_without_git_there_is_one_line_and_nothing_is_left(
    recorded: Callable[..., Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match="git is not installed, or not on PATH"):
            restore(run)
    assert nothing_is_left(tmp_path)


def test_the_digits_that_the_record_does_not_keep_are_no_difference(
    recorded: Callable[..., Recorded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, name, content in (("metrics", EVALUATION, '{"gap": {"loss": 0.0630523}, "test": {"loss": 0.27108673}}'),
                                  ("models", WEIGHTS, "weights")):  # fmt: skip
        (tmp_path / folder).mkdir()
        (tmp_path / name).write_text(content)
    run = replace(recorded(), figures={"gap_loss": 0.07, "test_loss": 0.271087}, weights_digest=digest(b"weights"))
    reproduce.compare(run, tmp_path)
    said = capsys.readouterr().out
    rows = {line.split()[1]: line.split()[7] for line in said.splitlines() if line.startswith("│")}
    assert rows == {"gap_loss": "-6.9e-03", "test_loss": "same"}
    assert "weights: identical, byte for byte" in said
