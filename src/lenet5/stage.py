"""What every stage script shares: its params, its errors, and its outs when it fails."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lenet5.errors import INTERRUPTED, one_line_errors
from lenet5.params import Params, load_params
from lenet5.workspace import PARAMS_FILE


def run_stage(name: str, main: Callable[[Params], None]) -> None:
    """Run ``main`` with the checked params; what a person can mend ends it with one line and exit status 1."""
    with one_line_errors(name):
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
        if os.environ.get("DVC_STAGE") == name:
            # In a process of its own: here, importing DVC would wait for mlflow, which a thread may be importing.
            subprocess.run([sys.executable, "-m", "lenet5.stage", name], check=False)
        if isinstance(error, SystemExit) and error.code == INTERRUPTED:
            os._exit(INTERRUPTED)  # the same thread would hold up the interpreter's own way out for seconds
        raise


def _check_out(name: str) -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        for out in repo.stage.load_one(name=name).outs:
            try:
                if out.hash_info and not out.exists:
                    out.checkout()
            except DvcException:  # never committed, or gone from the cache: there is nothing to bring back
                continue


if __name__ == "__main__":
    _check_out(sys.argv[1])
