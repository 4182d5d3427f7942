"""Whether this machine and this workspace are fit for the pipeline: one finding a line, with what to do about it.

Asks metadata, files and programs, and imports neither PyTorch nor MLflow, which may be what is broken.
"""

import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lenet5.compiler import compiler_name
from lenet5.errors import UserError
from lenet5.fashion_mnist import RAW_DIR, SHA256, is_verified
from lenet5.lineage import without_credentials
from lenet5.params import load_params
from lenet5.workspace import LOCK_FILE, PARAMS_FILE, PIPELINE_FILE, main_workspace, store_uri

OLDEST_PYTHON = (3, 11)
REQUIREMENTS = Path("requirements.lock")

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
_PATIENCE = 60
_SERVER_PATIENCE = 5
_DISK_NEEDED, _DISK_WISHED = 0.5, 3.0  # GiB: for the next runs; for those of a year


@dataclass(frozen=True)
class Finding:
    """What a check found out: ``level`` is ok, note or problem."""

    level: str
    subject: str
    text: str


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
        yield Finding("note", "python", f"`dvc repro` would run {found or 'none'}; activate {sys.prefix} first")


def check_packages() -> Iterator[Finding]:
    """What is installed, against what the lock file pins for this machine."""
    from packaging.requirements import Requirement

    install = f"`python -m pip install --require-hashes --requirement {REQUIREMENTS}`"
    if not REQUIREMENTS.is_file():
        yield Finding("problem", "packages", f"no {REQUIREMENTS} here; run from the folder that holds {PIPELINE_FILE}")
        return
    pins = re.findall(r"^[A-Za-z0-9].*?(?= \\$|$)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)
    pinned = [pin for pin in map(Requirement, pins) if pin.marker is None or pin.marker.evaluate()]
    installed = {pin.name: _installed(pin.name) for pin in pinned}
    missing = [pin.name for pin in pinned if installed[pin.name] is None]
    other = [
        f"{pin.name} {found}, not {str(pin.specifier).removeprefix('==')}"
        for pin in pinned
        if (found := installed[pin.name]) and not pin.specifier.contains(found, prereleases=True)
    ]
    if missing:
        yield Finding("problem", "packages", f"{len(missing)} missing: {_few(missing)}; {install}")
    if other:
        yield Finding("note", "packages", f"{len(other)} other than locked: {_few(other)}; {install}")
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


def check_cuda() -> Iterator[Finding]:
    """The GPUs, and whether their driver is new enough for the CUDA that PyTorch brings."""
    if not find_spec("pynvml"):  # check_packages tells how to install it
        yield Finding("note", "cuda", "cannot be looked into: the package nvidia-ml-py is missing")
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield _no_gpu(f"no NVIDIA driver answers ({error})")
        return
    try:
        yield _gpus()
    finally:
        pynvml.nvmlShutdown()


def check_git() -> Iterator[Finding]:
    """The repository that lineage and experiments are written against."""
    if not shutil.which("git"):
        yield Finding("problem", "git", "not installed; DVC's experiments and a run's lineage need it")
        return
    status = _call("git", "status", "--porcelain")
    head = _call("git", "rev-parse", "--short", "HEAD")
    if status is None or head is None:
        yield Finding("problem", "git", "no repository with a commit here; `git init`, `git add .`, `git commit`")
        return
    changed = len(status.splitlines())
    text = f"at {head.strip()}"
    if changed:
        yield Finding("note", "git", f"{text} with {changed} uncommitted changes; runs keep them as a diff")
    else:
        yield Finding("ok", "git", f"{text}, nothing uncommitted")


def check_dvc() -> Iterator[Finding]:
    """Whether the outs are those of the params, data and code as they stand."""
    if not Path(".dvc").is_dir() or not PIPELINE_FILE.is_file():
        yield Finding("problem", "dvc", "no pipeline here; run from the folder that holds dvc.yaml")
        return
    if not LOCK_FILE.is_file():
        yield Finding("note", "dvc", "the pipeline has not run yet; `dvc repro`")
        return
    answer = _call(sys.executable, "-m", "dvc", "status", "--json")
    if answer is None:
        yield Finding("problem", "dvc", "`dvc status` fails; call it to see why (a running `dvc repro` is one reason)")
        return
    stale = list(json.loads(answer))
    if stale:
        yield Finding("note", "dvc", f"changed since they ran: {_few(stale)}; `dvc repro` runs them")
    else:
        yield Finding("ok", "dvc", "every stage is up to date")


def check_store() -> Iterator[Finding]:
    """The MLflow record, and whether the installed MLflow can use it."""
    uri = store_uri()
    shown = without_credentials(uri)
    if uri.startswith(("http://", "https://")):
        yield _server(uri, shown)
    elif uri.startswith("sqlite:///"):
        yield _database(uri, Path(uri.removeprefix("sqlite:///")))
    else:
        yield Finding("note", "mlflow", f"{shown} is not looked into from here; `mlflow ui --backend-store-uri` does")


def check_stray_stores() -> Iterator[Finding]:
    """Records beside the record: MLflow refuses the one kind, and nobody finds the runs in the other."""
    root = main_workspace()
    old = sorted(path.parent for path in root.glob("mlruns/*/meta.yaml"))
    if old:
        names = _few([path.relative_to(root).as_posix() for path in old])
        yield Finding(
            "problem", "stores", f"an old-style file store: {names}; MLflow refuses it: move it out of mlruns"
        )
    apart = [path for name in ("mlflow.db", "mlruns") for path in root.glob(f"*/{name}") if path.parent.name[0] != "."]
    if apart:
        names = _few([path.relative_to(root).as_posix() for path in apart])
        yield Finding("note", "stores", f"a second record: {names}; delete it, or name it in MLFLOW_TRACKING_URI")
    if not old and not apart:
        yield Finding("ok", "stores", "no stray MLflow store")


def check_data() -> Iterator[Finding]:
    """FashionMNIST, byte for byte."""
    missing = [name for name in SHA256 if not (RAW_DIR / name).is_file()]
    damaged = [name for name in SHA256 if name not in missing and not is_verified(RAW_DIR / name)]
    if damaged:
        yield Finding("problem", "data", f"not as published (SHA-256): {_few(damaged)}; `dvc repro -f download`")
    if missing:
        yield Finding("note", "data", f"not here yet: {_few(missing)}; `dvc repro download` fetches it")
    if not damaged and not missing:
        yield Finding("ok", "data", "all four files as published (SHA-256)")


def check_disk() -> Iterator[Finding]:
    """The space left for outs, cache and record."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < _DISK_NEEDED:
        yield Finding("problem", "disk", f"{free:.2f} GiB free; make room, `dvc gc --workspace` clears old outs")
    elif free < _DISK_WISHED:
        yield Finding("note", "disk", f"{free:.1f} GiB free; `dvc gc --workspace` clears old outs")
    else:
        yield Finding("ok", "disk", f"{free:,.0f} GiB free")


def check_programs() -> Iterator[Finding]:
    """Programs that are used where they are there."""
    browsers = ("chromium", "chromium-browser")
    yield _program("chromium", browsers, "the tests in a browser are skipped; on Debian, `apt-get install chromium`")
    slow = "training on a CPU is slower, for nothing can be compiled; on Debian, `apt-get install g++`"
    yield _program("compiler", (compiler_name(),), slow)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python, check_packages, check_params, check_cuda, check_git, check_dvc, check_store, check_stray_stores,
    check_data, check_disk, check_programs,
)  # fmt: skip


def _device_wished() -> str:
    try:
        return load_params(PARAMS_FILE).train.device
    except UserError:  # check_params tells
        return "auto"


def _no_gpu(reason: str) -> Finding:
    if _device_wished() == "cuda":
        return Finding("problem", "cuda", f"{reason}, but train.device is cuda; set it to auto, or mend that")
    return Finding("note", "cuda", f"{reason}; training takes the CPU, which is slower and needs no setting")


def _gpus() -> Finding:
    import pynvml

    driver = pynvml.nvmlSystemGetDriverVersion()
    able = pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000
    needed = _installed("cuda-toolkit")
    if needed and able < int(needed.split(".")[0]):
        text = f"driver {driver} is for CUDA {able}, PyTorch needs {needed}; install a newer driver"
        return Finding("problem", "cuda", text)
    count = pynvml.nvmlDeviceGetCount()
    names = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
    if not names:
        return _no_gpu(f"driver {driver}, but no GPU")
    return Finding("ok", "cuda", f"{', '.join(names)}; driver {driver}, CUDA {able}")


def _server(uri: str, shown: str) -> Finding:
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/version", timeout=_SERVER_PATIENCE, **_credentials())
    except requests.RequestException as error:
        text = f"{shown} does not answer ({type(error).__name__}); start it, or unset MLFLOW_TRACKING_URI"
        return Finding("problem", "mlflow", text)
    if not answer.ok:
        text = f"{shown} answers {answer.status_code}; check MLFLOW_TRACKING_USERNAME and ..._PASSWORD, or ..._TOKEN"
        return Finding("note", "mlflow", text)
    return Finding("ok", "mlflow", f"{shown} answers, MLflow {answer.text[:50].strip()}")


def _credentials() -> dict[str, Any]:
    """Those of the environment, in the order in which MLflow's client takes them, as arguments of requests."""
    asked = os.environ.get
    user, password = asked("MLFLOW_TRACKING_USERNAME"), asked("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return {"auth": (user, password)}
    token = asked("MLFLOW_TRACKING_TOKEN")
    return {"headers": {"Authorization": f"Bearer {token}"}} if token else {}


def _database(uri: str, file: Path) -> Finding:
    if not file.is_file():
        return Finding("note", "mlflow", f"no record yet; `dvc repro` makes {file}")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as record:
            (schema,) = record.execute("SELECT version_num FROM alembic_version").fetchone()
            (runs,) = record.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()
    except (sqlite3.Error, TypeError) as error:
        return Finding("problem", "mlflow", f"{file}: no MLflow record ({error}); move it away, then `make record`")
    known, newest = _schemas()
    if schema == newest:
        return Finding("ok", "mlflow", f"{file}: {runs} runs, schema {schema}")
    if schema in known:
        text = f"{file}: schema {schema} of an older MLflow; copy the file, then `mlflow db upgrade {uri}`"
        return Finding("problem", "mlflow", text)
    text = f"{file}: schema {schema} of a newer MLflow than {_installed('mlflow')}; install the one that made it"
    return Finding("problem", "mlflow", text)


def _schemas() -> tuple[set[str], str]:
    """Every schema the installed MLflow has had, and the newest: the one that no other comes after."""
    found = find_spec("mlflow")
    folder = Path(str(found and found.origin)).parent / "store/db_migrations/versions"
    scripts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    lines = {word: [re.findall(rf"^{word} = .*$", text, re.MULTILINE) for text in scripts]
             for word in ("revision", "down_revision")}  # fmt: skip
    known, left = (set(re.findall(r"[0-9a-f]{12}", str(lines[word]))) for word in ("revision", "down_revision"))
    return known, next(iter(known - left), "")


def _program(subject: str, names: tuple[str, ...], otherwise: str) -> Finding:
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        return Finding("note", subject, f"not found ({', '.join(names)}); {otherwise}")
    said = _call(found, "--version")
    if not said:
        return Finding("note", subject, f"{found} does not run; {otherwise}")
    return Finding("ok", subject, f"{found}: {said.splitlines()[0].strip()}")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _call(*command: str) -> str | None:
    """What a program prints, or None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
