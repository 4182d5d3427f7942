"""Repeat a recorded result: ``python -m lenet5.reproduce RUN_ID`` or ``... models:/NAME@champion``.

Restores the run's commit, uncommitted changes and params in a git worktree of its own, trains and evaluates there,
and shows the recorded and the new figures side by side. The person's own workspace and record stay untouched.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lenet5.errors import UserError, one_line_errors
from lenet5.fashion_mnist import RAW_DIR
from lenet5.files import digest, read_json
from lenet5.outs import EVALUATION, WEIGHTS
from lenet5.record import evaluation_figures
from lenet5.tracking import Recorded, fetch
from lenet5.workspace import PARAMS_FILE


def main() -> None:
    """Read the command line, reproduce, and show how it compares."""
    parser = argparse.ArgumentParser(prog="python -m lenet5.reproduce", description="Repeat a recorded result.")
    parser.add_argument("result", help="an MLflow run id, or models:/NAME@ALIAS, or models:/NAME/VERSION")
    arguments = parser.parse_args()
    with one_line_errors("reproduce", "call it again"), tempfile.TemporaryDirectory() as folder:
        recorded = fetch(arguments.result, Path(folder))
        worktree = Path(tempfile.mkdtemp(prefix=f"lenet5-{recorded.run_id[:8]}-"))
        restore(recorded, worktree)
        print(f"{recorded.name} at {recorded.commit[:10]}, restored in {worktree}", flush=True)
        _train_and_evaluate(worktree)
        compare(recorded, worktree)
        print(f"`git worktree remove --force {worktree}` clears it away")


def restore(recorded: Recorded, worktree: Path) -> None:
    """Check out the run's code and params in ``worktree``. Raises UserError where git no longer has the commit."""
    done = _git("worktree", "add", "--force", "--detach", str(worktree), recorded.commit)
    if done.returncode:
        raise UserError(
            f"commit {recorded.commit or '(none)'} of run {recorded.run_id} is not in this repository: fetch it"
        )
    if recorded.diff:
        applied = _git("-C", str(worktree), "apply", "--whitespace=nowarn", str(recorded.diff))
        if applied.returncode:
            raise UserError(f"the changes recorded with run {recorded.run_id} do not apply: {applied.stderr}")
    (worktree / PARAMS_FILE).write_bytes(recorded.params.read_bytes())


def _train_and_evaluate(worktree: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(worktree / "src"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{(worktree / 'mlflow.db').as_posix()}",
    }
    environment.setdefault("FASHION_MNIST_DIR", str(RAW_DIR.absolute()))
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "evaluate"], cwd=worktree, env=environment, check=False
    )
    if done.returncode:
        raise UserError(f"the pipeline failed in {worktree}, see above")


def compare(recorded: Recorded, worktree: Path) -> None:
    """Print the verdict on the weights, and each figure as recorded and as reproduced."""
    console = Console()
    figures = evaluation_figures(read_json(worktree / EVALUATION))
    table = Table("figure", "recorded", "reproduced", "difference")
    for name, value in sorted(figures.items()):
        if name in recorded.figures:
            before = recorded.figures[name]
            table.add_row(
                name, f"{before:.6f}", f"{value:.6f}", f"{value - before:+.1e}" if value != before else "same"
            )
    console.print(table)
    same = digest((worktree / WEIGHTS).read_bytes()) == recorded.weights_digest
    verdict = "identical, byte for byte" if same else "different: another kind of machine, or other library versions"
    console.print(f"weights: {verdict}")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
