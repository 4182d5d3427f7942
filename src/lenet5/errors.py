"""Mistakes a person can mend, and how a command reports them."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PERSON_CAN_MEND = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}

INTERRUPTED = 130
"""Exit status of a process that Ctrl-C ended, as shells have it."""


class UserError(Exception):
    """A mistake a person can mend. Its text says what is wrong, where, and what to do, in one line."""


@contextmanager
def one_line_errors(command: str, interrupted: str = "`dvc repro` takes it up again") -> Iterator[None]:
    """End the process with one line on stderr for what a person can mend; anything else keeps its traceback.

    Exit status is 1 for a mistake and INTERRUPTED for Ctrl-C, after which ``interrupted`` says how to go on.
    """
    try:
        yield
    except UserError as error:
        _fail(command, str(error), 1)
    except OSError as error:
        if error.errno not in _PERSON_CAN_MEND:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(command, f"{error.strerror}{where}; nothing was half written: make room or access, then repeat", 1)
    except KeyboardInterrupt:
        _fail(command, f"interrupted; {interrupted}", INTERRUPTED)


def _fail(command: str, message: str, status: int) -> None:
    one_line = " ".join(message.split())
    print(f"{command}: {one_line}", file=sys.stderr, flush=True)
    sys.exit(status)
