"""Whether this machine and this workspace are fit for the pipeline: one finding a line, with what to do about it.

Asks metadata, files and programs, and imports neither PyTorch nor MLflow, which may be what is broken.
"""

import configparser
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lenet5.data.fashion_mnist import RAW_DIR, SHA256, is_verified
from lenet5.errors import UserError
from lenet5.findings import Finding, call, few, installed, program
from lenet5.params import load_params
from lenet5.record.checks import check_files, check_store, check_stray_stores, check_trainings
from lenet5.record.lineage import distrusted
from lenet5.training.checks import check_compiler, check_cuda
from lenet5.workspace import LOCK_FILE, PARAMS_FILE, PIPELINE_FILE

OLDEST_PYTHON = (3, 11)
REQUIREMENTS = Path("requirements.lock")

_REMOTES = {
    "s3": "dvc-s3", "gs": "dvc-gs", "azure": "dvc-azure", "ssh": "dvc-ssh", "hdfs": "dvc-hdfs", "oss": "dvc-oss",
    "gdrive": "dvc-gdrive", "webdav": "dvc-webdav", "webdavs": "dvc-webdav",
}  # fmt: skip
"""Which package a DVC remote of each scheme needs beside DVC."""

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
_DISK_NEEDED, _DISK_WISHED = 0.5, 3.0  # GiB: for the next runs; for those of a year
# Not `dvc gc`: it deletes outs of experiments and of earlier params, which cannot be told from what nobody needs.
_ROOM = "docs/workspace.md (Clean it) has what can go; .dvc/cache and mlruns hold your results"


def doctor() -> int:
    """Print every finding; returns the exit status, 1 when there is a problem."""
    console = Console()
    found = []
    for check in CHECKS:
        for finding in check():
            found.append(finding)
            line = Text.assemble(
                (f"{finding.level:<8}", _STYLES[finding.level]), f"{finding.subject:<10}{finding.text}"
            )
            console.print(line, soft_wrap=True)
    return 1 if any(finding.level == "problem" for finding in found) else 0


def check_python() -> Iterator[Finding]:
    """This interpreter, and whether DVC, which runs `python` as it finds it, gets the same."""
    wanted = ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("problem", "python", f"{platform.python_version()}; {wanted} or newer is needed")
        return
    yield Finding("ok", "python", f"{platform.python_version()} in {sys.prefix}")
    found = shutil.which("python")
    if found is None or Path(found).absolute().parent != Path(sys.executable).absolute().parent:
        own = Path(sys.executable).parent
        way = f"activate {sys.prefix}" if sys.prefix != sys.base_prefix else f"put {own} first on PATH"
        yield Finding("note", "python", f"`dvc repro` would run {found or 'none'}; {way} first")


def check_packages() -> Iterator[Finding]:
    """What is installed, against what the lock file pins for this machine."""
    from packaging.requirements import InvalidRequirement, Requirement

    install = f"`python -m pip install --require-hashes --requirement {REQUIREMENTS}`"
    if not REQUIREMENTS.is_file():
        back = f"`git restore {REQUIREMENTS}`" if PIPELINE_FILE.is_file() else f"run from the folder of {PIPELINE_FILE}"
        yield Finding("problem", "packages", f"no {REQUIREMENTS} here; {back}")
        return
    pins = re.findall(r"^[A-Za-z0-9].*?(?= \\$|$)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)
    try:
        pinned = [pin for pin in map(Requirement, pins) if pin.marker is None or pin.marker.evaluate()]
    except InvalidRequirement as error:
        yield Finding(
            "problem", "packages", f"{REQUIREMENTS}: {str(error).splitlines()[0]}; `git diff` shows what changed"
        )
        return
    found = {pin.name: installed(pin.name) for pin in pinned}
    missing = [name for name, here in found.items() if here is None]
    other = [
        f"{pin.name} {here}, not {str(pin.specifier).removeprefix('==')}"
        for pin in pinned
        if (here := found[pin.name]) and not pin.specifier.contains(here, prereleases=True)
    ]
    if missing:
        yield Finding("problem", "packages", f"{len(missing)} missing: {few(missing)}; {install}")
    if other:
        yield Finding("note", "packages", f"{len(other)} other than locked: {few(other)}; {install}")
    if not missing and not other:
        yield Finding("ok", "packages", f"all {len(pinned)} as {REQUIREMENTS} pins them")


def check_params() -> Iterator[Finding]:
    """Whether the stages would accept params.yaml."""
    try:
        load_params(PARAMS_FILE)
    except UserError as error:
        yield Finding("problem", "params", str(error))
    else:
        yield Finding("ok", "params", f"{PARAMS_FILE} is valid")


def check_git() -> Iterator[Finding]:
    """The repository that lineage and experiments are written against."""
    status, head = call("git", "status", "--porcelain"), call("git", "rev-parse", "--short", "HEAD")
    if _without_git():
        unset = "" if status is None else "; `dvc config --local --unset core.no_scm` has DVC see the repository"
        missing = "runs are recorded without their commit, and `dvc exp run` does not work"
        yield Finding("note", "git", f"not used, as core.no_scm in .dvc has it: {missing}{unset}")
        return
    if not shutil.which("git"):
        yield Finding("problem", "git", "not installed; DVC's experiments and a run's lineage need it")
        return
    if status is None and (reason := distrusted()):
        yield Finding("problem", "git", reason)
        return
    if status is None or head is None:
        yield Finding("problem", "git", "no repository with a commit here; `git init`, `git add .`, `git commit`")
        return
    changed = len(status.splitlines())
    text = f"at {head.strip()}"
    if changed:
        yield Finding("note", "git", f"{text}, uncommitted changes (files: {changed}); runs keep them as a diff")
    else:
        yield Finding("ok", "git", f"{text}, nothing uncommitted")
    unknown = [f"user.{what}" for what in ("name", "email") if not _identity(what)]
    if unknown:
        yield Finding(
            "note", "git", f"{' and '.join(unknown)} not set, which `dvc exp run` needs: `git config {unknown[0]} ...`"
        )


def _without_git() -> bool:
    """Whether DVC is told to do without."""
    try:
        return _dvc_config().getboolean("core", "no_scm", fallback=False)
    except ValueError:  # DVC says what is wrong with it
        return False


def _remotes() -> Iterator[Finding]:
    """The packages that remotes need beside DVC."""
    config = _dvc_config()
    urls = [config[section].get("url", "") for section in config.sections() if "remote" in section]
    packages = {_REMOTES[scheme] for url in urls if (scheme := url.partition("://")[0]) in _REMOTES}
    missing = sorted(package for package in packages if not installed(package))
    if missing:
        needs = f"a remote needs {few(missing)}; `python -m pip install {' '.join(missing)}`"
        yield Finding("problem", "remote", needs)


def _dvc_config() -> configparser.ConfigParser:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    with suppress(configparser.Error, ValueError):  # DVC says what is wrong with it
        config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    return config


def _cache_beyond_ascii() -> Iterator[Finding]:
    """DVC writes the settings of an experiment in a folder of its own as ASCII, the cache's place among them."""
    if not str(_cache()).isascii():
        fails = "`dvc exp run --queue` and `--temp` fail where the path of DVC's cache is not plain ASCII"
        yield Finding("note", "dvc", f"{fails}: move it, and `dvc cache dir --local` (docs/workspace.md)")


def _cache() -> Path:
    return Path(".dvc", _dvc_config().get("cache", "dir", fallback="cache")).absolute()


def _identity(what: str) -> str | None:
    return os.environ.get(f"GIT_COMMITTER_{what.upper()}") or call("git", "config", f"user.{what}")


def check_dvc() -> Iterator[Finding]:
    """Whether the outs are those of the params, data and code as they stand."""
    if not Path(".dvc").is_dir() or not PIPELINE_FILE.is_file():
        yield Finding("problem", "dvc", "no pipeline here; run from the folder that holds dvc.yaml")
        return
    yield from _cache_beyond_ascii()
    if not LOCK_FILE.is_file():
        yield Finding("note", "dvc", "the pipeline has not run yet; `dvc repro`")
        return
    if not _without_git() and call("git", "rev-parse", "--git-dir") is None:
        yield Finding("problem", "dvc", "does nothing without the git repository; see git")
        return
    yield from _remotes()
    answer = call(sys.executable, "-m", "dvc", "status", "--json")
    if answer is None:
        yield Finding("problem", "dvc", "`dvc status` fails; call it to see why (a running `dvc repro` is one reason)")
        return
    stale = list(json.loads(answer))
    if stale:
        yield Finding("note", "dvc", f"changed since they ran: {few(stale)}; `dvc repro` runs them")
    else:
        yield Finding("ok", "dvc", "every stage is up to date")


def check_data() -> Iterator[Finding]:
    """FashionMNIST, byte for byte."""
    missing = [name for name in SHA256 if not (RAW_DIR / name).is_file()]
    damaged = [name for name in SHA256 if name not in missing and not is_verified(RAW_DIR / name)]
    if damaged:
        yield Finding("problem", "data", f"not as published (SHA-256): {few(damaged)}; `dvc repro -f download`")
    if missing:
        yield Finding("note", "data", f"not here yet: {few(missing)}; `dvc repro download` fetches it")
    if not damaged and not missing:
        yield Finding("ok", "data", "all four files as published (SHA-256)")


def check_disk() -> Iterator[Finding]:
    """The space left for outs, cache and record; the cache may lie on a disk of its own."""
    places = {"": Path.cwd(), " where DVC's cache lies": _cache()}
    room = {where: shutil.disk_usage(place).free / 2**30 for where, place in places.items() if place.is_dir()}
    where, free = min(room.items(), key=lambda found: found[1])
    if free < _DISK_NEEDED:
        yield Finding("problem", "disk", f"{free:.2f} GiB free{where}; {_ROOM}")
    elif free < _DISK_WISHED:
        yield Finding("note", "disk", f"{free:.1f} GiB free{where}; {_ROOM}")
    else:
        yield Finding("ok", "disk", f"{free:,.0f} GiB free{where}")


def check_browser() -> Iterator[Finding]:
    """The browser that tests use where it is there."""
    skipped = "the tests in a browser are skipped; on Debian, `apt-get install chromium`"
    yield program("chromium", ("chromium", "chromium-browser"), skipped)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python, check_packages, check_params, check_cuda, check_git, check_dvc, check_store, check_files,
    check_stray_stores, check_trainings, check_data, check_disk, check_browser, check_compiler,
)  # fmt: skip
