"""What every stage imports first: from here on ``lenet5`` is the package beside it, and a signal ends it in one line.

An installed package is that of one checkout. A queued experiment, a git worktree and a copy of the folder are
others, and must run what they hold; so must the processes that a stage starts.
"""

import os
import sys
from pathlib import Path

_SOURCE = str(Path(__file__).resolve().parents[1] / "src")

sys.path.insert(0, _SOURCE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SOURCE, os.environ.get("PYTHONPATH")]))

from lenet5.stage import begin, outs_survive_failure, run_stage  # noqa: E402 - it is to be found only now

__all__ = ["outs_survive_failure", "run_stage"]

begin()
