import os
import subprocess
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest

from lenet5.commands import doctor
from lenet5.findings import Finding
from tests.unit.conftest import only

Usage = namedtuple("Usage", "total used free")


pytestmark = pytest.mark.usefixtures("workspace")


def lock(*pins: str) -> None:
    content = "".join(f"{pin} \\\n    --hash=sha256:{'0' * 64}\n    # via something\n" for pin in pins)
    Path("requirements.lock").write_text(content)


def test_packages_as_locked_are_ok_and_those_of_other_systems_are_not_asked_for() -> None:
    lock(f"numpy=={version('numpy')}", "no-such-package==1 ; sys_platform == 'plan9'")
    assert only(doctor.check_packages) == Finding("ok", "packages", "all 1 as requirements.lock pins them")


def test_a_missing_package_is_a_problem_and_another_version_a_note() -> None:
    lock("no-such-package==1.0", "numpy==1.0", "another-one==3 ; python_full_version >= '3.8'")
    missing, other = doctor.check_packages()
    assert missing.level == "problem"
    assert "2 missing: no-such-package, another-one; `python -m pip install" in missing.text
    assert other.level == "note"
    assert f"numpy {version('numpy')}, not 1.0" in other.text


def test_a_build_of_the_locked_version_for_one_kind_of_gpu_is_that_version(monkeypatch: pytest.MonkeyPatch) -> None:
    lock("torch==2.14.1")
    monkeypatch.setattr(doctor, "installed", lambda _: "2.14.1+cu130")
    assert only(doctor.check_packages).level == "ok"


def test_data_that_is_not_there_is_a_note_and_damaged_data_a_problem(workspace: Path) -> None:
    folder = workspace / "data/FashionMNIST/raw"
    folder.mkdir(parents=True)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    damaged, missing = doctor.check_data()
    assert (damaged.level, missing.level) == ("problem", "note")
    assert "t10k-labels-idx1-ubyte; `dvc repro -f download`" in damaged.text
    assert "t10k-labels" not in missing.text


@pytest.mark.parametrize(("free", "level"), [(0.1, "problem"), (1.0, "note"), (50.0, "ok")])
def test_little_room_is_told(monkeypatch: pytest.MonkeyPatch, free: float, level: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(0, 0, int(free * 2**30)))
    finding = only(doctor.check_disk)
    assert finding.level == level
    assert "dvc gc" not in finding.text  # it would destroy the outs of experiments


def test_a_cache_on_a_fuller_disk_than_the_workspace_is_told(
    monkeypatch: pytest.MonkeyPatch, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    (workspace / ".dvc").mkdir()
    (workspace / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n")
    free = {workspace: 50 * 2**30, cache: 2**28}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Usage(0, 0, free[place]))
    finding = only(doctor.check_disk)
    assert finding.level == "problem"
    assert finding.text.startswith("0.25 GiB free where DVC's cache lies; ")


def test_git_that_does_not_know_the_person_is_told_for_experiments_need_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for who in ("AUTHOR", "COMMITTER"):
        for what in ("NAME", "EMAIL"):
            monkeypatch.delenv(f"GIT_{who}_{what}", raising=False)
    subprocess.run(["git", "init", "--quiet"], cwd=workspace, check=True)
    known = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *known, "commit", "--quiet", "--allow-empty", "--message", "first"], check=True)
    clean, unknown = doctor.check_git()
    assert (clean.level, unknown.level) == ("ok", "note")
    assert "user.name and user.email not set, which `dvc exp run` needs" in unknown.text
    subprocess.run(["git", "config", "user.name", "A"], check=True)
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "a@example.org")
    assert only(doctor.check_git).level == "ok"


def test_a_repository_of_another_user_is_no_missing_one(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=workspace, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to say so
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(workspace / "gitconfig"))
    finding = only(doctor.check_git)
    assert finding.level == "problem"
    assert "git init" not in finding.text
    remedy = finding.text.split("`")[1]
    assert remedy == f"git config --global --add safe.directory {workspace}"
    subprocess.run(remedy.split(), check=True)
    assert "no repository with a commit" in only(doctor.check_git).text  # now that git looks into it


def test_a_remote_whose_package_is_missing_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / ".dvc").mkdir()
    (workspace / ".dvc/config").write_text("['remote \"shared\"']\n    url = s3://bucket/lenet5\n")
    (workspace / ".dvc/config.local").write_text("['remote \"mine\"']\n    url = /srv/dvc\n")
    monkeypatch.setattr(doctor, "installed", lambda _: None)
    (finding,) = doctor._remotes()
    assert (finding.level, finding.subject) == ("problem", "remote")
    assert "`python -m pip install dvc-s3`" in finding.text
    monkeypatch.setattr(doctor, "installed", lambda _: "1.0")
    assert list(doctor._remotes()) == []


def test_a_lock_that_is_missing_or_damaged_is_told_with_what_brings_it_back(workspace: Path) -> None:
    assert "run from the folder of dvc.yaml" in only(doctor.check_packages).text
    (workspace / "dvc.yaml").touch()
    assert "`git restore requirements.lock`" in only(doctor.check_packages).text
    (workspace / "requirements.lock").write_text("numpy==2.0\nabc def ghi\n")
    assert only(doctor.check_packages).level == "problem"


def test_without_a_browser_its_tests_are_skipped(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setenv("PATH", str(workspace))
    finding = only(doctor.check_browser)
    assert finding.level == "note"
    assert "the tests in a browser are skipped" in finding.text


def test_outside_a_workspace_every_check_says_so_without_failing() -> None:
    levels = {check.__name__: {finding.level for finding in check()} for check in doctor.CHECKS}
    assert all(levels.values())
    for name in ("check_packages", "check_params", "check_git", "check_dvc"):
        assert levels[name] == {"problem"}


def test_a_workspace_that_does_without_git_is_told_what_it_lacks(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workspace.parent))
    (workspace / ".dvc").mkdir()
    (workspace / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    finding = only(doctor.check_git)
    assert finding.level == "note"
    assert "`dvc exp run` does not work" in finding.text
    assert "--unset" not in finding.text
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert "`dvc config --local --unset core.no_scm`" in only(doctor.check_git).text


def test_dvc_is_not_blamed_for_a_missing_repository(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workspace.parent))
    (workspace / ".dvc").mkdir()
    for name in ("dvc.yaml", "dvc.lock"):
        (workspace / name).write_text("stages: {}\n")
    assert "see git" in only(doctor.check_dvc).text


@pytest.mark.parametrize("name", ["卷积 lenet", "größer"])
def test_a_path_that_experiments_of_their_own_folder_cannot_take_is_told(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (workspace / name / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(workspace / name)
    Path("dvc.yaml").write_text("stages: {}\n")
    first, *_ = doctor.check_dvc()
    assert first.level == "note"
    assert "`dvc exp run --queue` and `--temp` fail" in first.text
    Path(".dvc/config.local").write_text("[cache]\n    dir = /srv/cache\n")
    assert not [finding for finding in doctor.check_dvc() if "--temp" in finding.text]
