"""Repeat a recorded result, beside the person's own workspace and record, which stay untouched.

The run's commit, uncommitted changes and params are restored in a git worktree of its own; training and evaluation
run there, and the recorded and the new figures are shown side by side.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.errors import UserError
from lenet5.files import digest, from_home, read_json
from lenet5.outs import EVALUATION, WEIGHTS
from lenet5.params import load_params
from lenet5.record.addresses import sqlite_uri
from lenet5.record.reading import Recorded, fetch
from lenet5.record.result import evaluation_figures, readable
from lenet5.workspace import PARAMS_FILE

_ABSENT = 1  # git's exit status where it finds no such object; in trouble it has others


def reproduce(reference: str) -> int:
    """Repeat a recorded result, and show how it compares. Raises UserError where it cannot be had or repeated."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = fetch(reference, load_params(PARAMS_FILE), Path(folder))
        with restored(recorded) as workspace:
            print(f"{recorded.name} at {recorded.commit[:10]}, restored in {workspace}", flush=True)
            _train_and_evaluate(workspace)
            compare(recorded, workspace)
    return 0


@contextmanager
def restored(recorded: Recorded) -> Iterator[Path]:
    """The run's code and params, in a git worktree that is cleared away with the block; gives the workspace in it.

    Raises UserError where git does not have the commit, or its changes do not apply.
    """
    if not shutil.which("git"):
        raise UserError("git is not installed, or not on PATH: it restores the code that a run was made with")
    worktree = Path(tempfile.mkdtemp(prefix=f"lenet5-{recorded.run_id[:8]}-"))
    try:
        yield _restore(recorded, worktree)
    finally:
        _git("worktree", "remove", "--force", str(worktree))
        shutil.rmtree(worktree, ignore_errors=True)


def _restore(recorded: Recorded, worktree: Path) -> Path:
    if not recorded.commit:
        raise UserError(f"run {recorded.run_id} was recorded without git: no commit says which code it ran")
    if _git("cat-file", "-e", recorded.commit).returncode == _ABSENT:
        raise UserError(f"commit {recorded.commit} of run {recorded.run_id} is not in this repository: fetch it")
    done = _git("worktree", "add", "--force", "--detach", str(worktree), recorded.commit)
    if done.returncode:
        raise UserError(f"commit {recorded.commit} cannot be restored in {worktree}: {_last_line(done.stderr)}")
    if recorded.diff:
        applied = _git(
            "-c", "apply.ignoreWhitespace=no", "-C", str(worktree), "apply", "--whitespace=nowarn", str(recorded.diff)
        )
        if applied.returncode:
            reason = _last_line(applied.stderr)
            raise UserError(f"the changes recorded with run {recorded.run_id} do not apply: {reason}")
    # The pipeline may lie in a folder of its repository.
    workspace = worktree / _git("rev-parse", "--show-prefix").stdout.removesuffix("\n")
    if not (workspace / PARAMS_FILE).is_file():
        raise UserError(f"commit {recorded.commit} of run {recorded.run_id} holds no pipeline where this one lies")
    (workspace / PARAMS_FILE).write_bytes(recorded.params.read_bytes())
    return workspace


def _train_and_evaluate(workspace: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(workspace / "src"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": sqlite_uri(workspace / "mlflow.db"),
    }
    own = os.environ.get("FASHION_MNIST_DIR")
    data = from_home(own) if own and not RAW_DIR.is_dir() else RAW_DIR
    environment["FASHION_MNIST_DIR"] = str(data.absolute())
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro", "evaluate"], cwd=workspace, env=environment) as dvc:
        try:
            status = dvc.wait()
        finally:
            _end(dvc)
    if status:
        raise UserError("the pipeline failed, see above; its folder is cleared away")


def _end(started: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: a stage of DVC's outlives DVC, and would write where nothing is any more."""
    if started.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):  # it ends by itself meanwhile
        process = psutil.Process(started.pid)
        for member in [*process.children(recursive=True), process]:
            member.kill()


def compare(recorded: Recorded, workspace: Path) -> None:
    """Print the verdict on the weights, and each figure as recorded and as reproduced."""
    console = Console()
    figures = readable(evaluation_figures(read_json(workspace / EVALUATION)))
    before = readable(recorded.figures)  # of an old record too, which has more digits
    table = Table("figure", "recorded", "reproduced", "difference")
    for name, value in sorted(figures.items()):
        if name in before:
            difference = f"{value - before[name]:+.1e}" if value != before[name] else "same"
            table.add_row(name, f"{before[name]:.6f}", f"{value:.6f}", difference)
    console.print(table)
    same = digest((workspace / WEIGHTS).read_bytes()) == recorded.weights_digest
    verdict = "identical, byte for byte" if same else "different: another kind of machine, or other library versions"
    console.print(f"weights: {verdict}")


def _last_line(told: str) -> str:
    return told.strip().rpartition("\n")[2]


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
