"""What every stage script shares: its package, its params, its errors, and its outs when it fails.

Imports little: it is what makes a signal during the imports of a stage harmless.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lenet5.errors import UserError, end_as_by_ctrl_c, ended_by, exit_status, one_line_errors

if TYPE_CHECKING:
    from lenet5.params import Params


def begin() -> None:
    """Before a stage imports what takes seconds: from here on, whatever ends it leaves its outs there."""
    end_as_by_ctrl_c()
    sys.excepthook = _end_of_imports


def run_stage(name: str, main: Callable[["Params"], None]) -> None:
    """Run ``main`` with the checked params; what a person can mend ends it with one line and exit status 1."""
    from lenet5.params import load_params
    from lenet5.workspace import PARAMS_FILE

    sys.excepthook = sys.__excepthook__
    with one_line_errors(name):
        _refuse_another_package(Path(sys.argv[0]))
        main(load_params(PARAMS_FILE))


@contextmanager
def outs_survive_failure(name: str) -> Iterator[None]:
    """Bring back the outs of stage ``name`` from DVC's cache when the block fails.

    DVC deletes a stage's outs before it runs the stage. (`persist: true` would keep them, and would switch the
    run cache off, which saves a training whenever someone goes back to earlier params.)
    """
    try:
        yield
    except BaseException as error:
        _bring_back(name)
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
            os._exit(error.code)  # the same thread would hold up the interpreter's own way out for seconds
        raise


def _refuse_another_package(script: Path) -> None:
    """Raise UserError where this is not the package beside ``script``: its results would be recorded as another's."""
    own, wanted = Path(__file__).resolve().parent, script.resolve().parents[1] / "src/lenet5"
    if own != wanted:
        raise UserError(f"runs the package in {own}, not {wanted}, which is beside the stage; call it from its folder")


def called_by_dvc(name: str) -> bool:
    """Whether DVC runs this process as the stage ``name``, called from whatever folder."""
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2] == name


def _bring_back(name: str) -> None:
    if called_by_dvc(name):
        # In a process of its own: here, importing DVC would wait for mlflow, which a thread may be importing.
        subprocess.run([sys.executable, "-m", "lenet5.stage", name], check=False)


def _end_of_imports(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    name = Path(sys.argv[0]).stem
    if not isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        _bring_back(name)
        return
    print(f"{name}: {ended_by(error)}; `dvc repro` takes it up again", file=sys.stderr, flush=True)
    _bring_back(name)
    os._exit(exit_status(error))


def _check_out(name: str) -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        for out in repo.stage.load_one(name=name).outs:
            try:
                if out.hash_info and not out.exists:
                    out.checkout()
            except (DvcException, OSError):  # never committed, or in no cache here: there is nothing to bring back
                continue


if __name__ == "__main__":
    _check_out(sys.argv[1])
