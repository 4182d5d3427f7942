import os
import subprocess
from pathlib import Path

import pytest

from lenet5.data.fashion_mnist import data_digest
from lenet5.files import digest
from lenet5.record.lineage import Code, changed_files, experiments_called, lineage_tags, read_code


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


@pytest.mark.parametrize("end", ["\n", "", "\n\n"], ids=repr)
def test_a_dvc_experiment_is_known_by_what_it_holds_whatever_it_is_called_now(repository: Path, end: str) -> None:
    params = f"train: {{lr: 0.1}} # naïve{end}"
    (repository / "params.yaml").write_text(params, encoding="utf-8")
    (repository / "metrics/export.json").write_text('{"weights_sha256": "0123abcd"}')
    baseline = git("rev-parse", "HEAD")
    git("add", "--all")
    git("commit", "--quiet", "--message", "an experiment")
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/renamed", "HEAD")
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/of-another-pipeline", baseline)
    tags = {"digest.weights": "0123abcd", "digest.params": digest(params.encode())}
    assert experiments_called("renamed") == [tags]
    assert experiments_called("of-another-pipeline") == experiments_called("nobody") == []


def test_files_changed_are_those_that_git_has_otherwise_seen_from_their_folder(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed_files() == []
    for name in ("dvc.lock", "metrics/test.json"):
        (repository / name).write_text("second")
    (repository / "notes.txt").write_text("never added")
    git("add", "dvc.lock")
    assert changed_files() == ["dvc.lock", "metrics/test.json"]
    monkeypatch.chdir(repository / "metrics")
    assert changed_files() == ["test.json"]


@pytest.mark.usefixtures("folder")
def test_outside_a_repository_no_file_is_changed() -> None:
    assert changed_files() == []


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


@pytest.mark.parametrize(
    "settings",
    [
        {"diff.external": "true"},
        {"diff.context": "0"},
        {"diff.noprefix": "true"},
        {"diff.orderFile": "no such file"},
        {"diff.relative": "true", "diff.renames": "copies"},
        {"diff.shout.textconv": "tr a-z A-Z <", "core.attributesFile": "attributes"},
        {"color.ui": "always", "diff.suppressBlankEmpty": "true", "diff.wsErrorHighlight": "all"},
        {"core.quotePath": "false", "apply.whitespace": "fix"},
        {"GIT_DIFF_OPTS": "--unified=0"},
        {"GIT_EXTERNAL_DIFF": "true"},
        {"GIT_LITERAL_PATHSPECS": "1"},
    ],
    ids=str,
)
def test_the_diff_applies_byte_for_byte_whatever_git_is_set_to(
    repository: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "attributes").write_text("* diff=shout\n")
    first = b"".join(b"line %d \xe9 \t\n" % number for number in range(40))
    (repository / "latin.py").write_bytes(first)
    git("add", "--all")
    git("commit", "--quiet", "--message", "second")
    for name, value in settings.items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)
        else:
            git("config", name, value)
    (repository / "dvc.lock").write_text("of the pipeline\n")
    changed = first.replace(b"line 20 ", b"\xfc 20 ").replace(b"line 3 ", b"line 3\r")
    (repository / "latin.py").write_bytes(changed)
    code = read_code()
    assert "of the pipeline" not in code.diff
    git("reset", "--quiet", "--hard", code.commit)
    diff = f"{code.diff}\n".encode(errors="surrogateescape")
    subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], input=diff, check=True)
    assert (repository / "latin.py").read_bytes() == changed


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


def test_the_diff_of_a_folder_of_a_repository_holds_what_is_in_it_at_its_place(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository / "teams/größer als 1"
    (folder / "src").mkdir(parents=True)
    (folder / "src/old.py").write_text("first\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "second")
    (repository / "code.py").write_text("of somebody else\n")
    (folder / "src/old.py").write_text("changed\n")
    (folder / "src/new.py").write_bytes(b"\0\xff new")
    monkeypatch.chdir(folder)
    code = read_code()
    monkeypatch.chdir(repository)
    git("reset", "--quiet", "--hard", code.commit)
    git("clean", "--quiet", "--force", "-d")
    git("apply", "--whitespace=nowarn", "-", stdin=code.diff + "\n")
    assert git("-c", "core.quotePath=off", "status", "--porcelain", "--untracked-files").splitlines() == [
        'M "teams/größer als 1/src/old.py"',
        '?? "teams/größer als 1/src/new.py"',
    ]
    assert (folder / "src/new.py").read_bytes() == b"\0\xff new"


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


def test_a_repository_that_git_does_not_trust_is_not_passed_over_in_silence(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_code().commit
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert read_code().commit == ""
    assert f"safe.directory {repository}`" in capsys.readouterr().err
