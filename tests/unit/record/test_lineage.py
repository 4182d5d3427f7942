import os
import subprocess
from pathlib import Path

import pytest

from lenet5.fashion_mnist import SHA256
from lenet5.files import digest
from lenet5.lineage import Code, data_digest, lineage_tags, read_code, without_credentials


def git(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["git", *arguments], input=stdin, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, outside any repository, with no git or DVC settings of the person who runs the tests."""
    for name in os.environ:
        if name.startswith(("GIT_", "DVC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A Person")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a.person@example.org")
    path = tmp_path / "project"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def repository(folder: Path) -> Path:
    (folder / "metrics").mkdir()
    for name in ("code.py", "dvc.lock", "metrics/test.json"):
        (folder / name).write_text("first\n\nlast\n\n")
    git("init", "--quiet", "--initial-branch", "trunk")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    return folder


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:token@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://token@example.org:8080/a", "https://example.org:8080/a"),
        ("https://user:t@ken@example.org/a", "https://example.org/a"),
        ("postgresql://user:secret@example.org:5432/db", "postgresql://example.org:5432/db"),
        ("https://example.org/a@b", "https://example.org/a@b"),
        ("ssh://git@example.org/a/b.git", "ssh://git@example.org/a/b.git"),
        ("ssh://git:secret@example.org/a", "ssh://git@example.org/a"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/home/a@b/c", "/home/a@b/c"),
        ("file:///srv/a", "file:///srv/a"),
        ("C:\\srv\\a", "C:\\srv\\a"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("https://[example.org/a", "https://[example.org/a"),
        ("", ""),
    ],
)
def test_no_secret_of_a_url_is_recorded(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


@pytest.mark.usefixtures("repository")
def test_a_clean_tree_has_no_diff() -> None:
    git("remote", "add", "origin", "https://user:token@example.org/a.git")
    code = read_code()
    assert code == Code(git("rev-parse", "HEAD"), "trunk", "https://example.org/a.git", "")
    assert len(code.commit) == 40


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("line", [0, 1, 3], ids=["first line", "empty line", "last line"])
def test_the_diff_of_a_changed_tree_brings_the_change_back(repository: Path, staged: bool, line: int) -> None:
    lines = (repository / "code.py").read_text().splitlines()
    lines[line] = "  changed\t"
    changed = "\n".join(lines) + "\n"
    (repository / "code.py").write_text(changed)
    if staged:
        git("add", "code.py")
    code = read_code()
    assert "+  changed\t" in code.diff
    git("reset", "--quiet", "--hard", code.commit)
    git("apply", "--whitespace=nowarn", "-", stdin=code.diff + "\n")
    assert (repository / "code.py").read_text() == changed


def test_new_code_that_git_does_not_know_yet_is_in_the_diff(repository: Path) -> None:
    (repository / "code.py").write_text("changed\n")
    (repository / "src").mkdir()
    for name, content in {"new.py": "a = 1\r\n", "größer als 1.py": "b = 2"}.items():
        (repository / "src" / name).write_bytes(content.encode())
    (repository / "notes.txt").write_text("no code\n")
    code = read_code()
    git("reset", "--quiet", "--hard", code.commit)
    git("clean", "--quiet", "--force", "-d")
    git("apply", "--whitespace=nowarn", "-", stdin=code.diff + "\n")
    assert (repository / "code.py").read_text() == "changed\n"
    assert (repository / "src/new.py").read_bytes() == b"a = 1\r\n"
    assert (repository / "src/größer als 1.py").read_text() == "b = 2"
    assert not (repository / "notes.txt").exists()


def test_what_the_pipeline_itself_writes_is_no_change_of_the_code(repository: Path) -> None:
    (repository / "dvc.lock").write_text("changed\n")
    (repository / "metrics/test.json").write_text("changed\n")
    assert read_code().diff == ""


def test_the_commit_of_a_queued_experiment_is_its_baseline(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = git("rev-parse", "HEAD")
    (repository / "code.py").write_text("of the experiment\n")
    git("commit", "--quiet", "--all", "--message", "DVC's own")
    assert read_code().diff == ""
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", baseline)
    code = read_code()
    assert code.commit == baseline
    assert "+of the experiment" in code.diff


@pytest.mark.usefixtures("folder")
def test_outside_a_repository_nothing_is_known() -> None:
    assert read_code() == Code("", "", "", "")


@pytest.mark.usefixtures("folder")
def test_before_the_first_commit_nothing_is_known_but_the_remote() -> None:
    git("init", "--quiet")
    git("remote", "add", "origin", "git@example.org:a.git")
    assert (read_code().commit, read_code().diff, read_code().remote) == ("", "", "git@example.org:a.git")


def test_without_git_nothing_is_known(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert read_code() == Code("", "", "", "")


def test_tags_say_where_a_result_comes_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "params.yaml").write_bytes(b"train: {}\n")
    monkeypatch.setenv("DVC_EXP_NAME", "a-trial")
    tags = lineage_tags(Code("c0ffee", "trunk", "", "a change"))
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert tags["mlflow.source.git.branch"] == "trunk"
    assert tags["git.dirty"] == "true"
    assert tags["dvc.experiment"] == "a-trial"
    assert tags["digest.params"] == digest(b"train: {}\n")
    assert tags["digest.data"] == data_digest()
    assert "torch " in tags["versions"]
    assert "mlflow.source.git.repoURL" not in tags
    assert all(tags.values())
    assert lineage_tags(Code("c0ffee", "trunk", "", ""))["git.dirty"] == "false"


def test_other_data_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = data_digest()
    monkeypatch.setitem(SHA256, next(iter(SHA256)), "0" * 64)
    assert data_digest() != before
