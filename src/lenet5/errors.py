"""Mistakes a person can mend, signals that end a process, and how a command reports both, secrets left out."""

import errno
import os
import re
import select
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import NoReturn

PERSON_CAN_MEND = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""The numbers of an OSError about room or access."""
_NO_SUCH_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY}
_MENDS = dict.fromkeys(PERSON_CAN_MEND, "make room or access, then repeat") | dict.fromkeys(
    _NO_SUCH_PLACE, "name another place, or clear that one"
)
_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AGAIN_SECONDS = 0.05  # a finalizer that is at work then drops it once more, and it is raised once more


class UserError(Exception):
    """A mistake a person can mend. Its text says what is wrong, where, and what to do, in one line."""


class Ended(KeyboardInterrupt):
    """A scheduler, `docker stop` or a closed terminal ends this process: what Ctrl-C gets, with a status of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def end_as_by_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP raise ``Ended``; one that is ignored (nohup) stays so. None is lost, nor is Ctrl-C."""
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    sys.unraisablehook = partial(_raise_again, sys.unraisablehook)


def exit_status(error: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it: 130 for Ctrl-C."""
    return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)


@contextmanager
def one_line_errors(command: str, interrupted: str = "`dvc repro` takes it up again") -> Iterator[None]:
    """End the process with one line on stderr for what a person can mend; anything else keeps its traceback.

    Exit status is 1 for a mistake and ``exit_status`` for a signal, after which ``interrupted`` says how to go on.
    """
    try:
        yield
    except UserError as error:
        _fail(command, str(error), 1)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        sys.exit(1)  # whoever reads, `head` say, has seen enough
    except OSError as error:
        if error.errno not in _MENDS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(command, f"{error.strerror}{where}; nothing was half written: {_MENDS[error.errno]}", 1)
    except KeyboardInterrupt as error:
        _fail(command, f"{ended_by(error)}; {interrupted}", exit_status(error))


def _nobody_reads() -> bool:
    """Whether stdout is a pipe without a reader; what is still to be written to it is then dropped."""
    if not hasattr(select, "poll"):  # Windows
        return False
    state = select.poll()
    state.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in state.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def ended_by(error: KeyboardInterrupt) -> str:
    """What ended the process, in a word."""
    return f"ended by {error}" if isinstance(error, Ended) else "interrupted"


def _end(number: int, _: FrameType | None) -> None:
    for other in _ENDING_SIGNALS:  # what is left to do is short, and is done by children too
        signal.signal(other, signal.SIG_IGN)
    for descriptor in (sys.__stdout__, sys.__stderr__):
        # A terminal that was closed refuses every word from now on, and with it what is left to do.
        if descriptor and stat.S_ISCHR(os.fstat(descriptor.fileno()).st_mode) and not descriptor.isatty():
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor.fileno())
    raise Ended(number)


def _raise_again(otherwise: Callable[["sys.UnraisableHookArgs"], object], dropped: "sys.UnraisableHookArgs") -> None:
    """Raise what a signal raised where Python drops it, in a finalizer that happened to run, a moment later."""
    error = dropped.exc_value
    if not isinstance(error, KeyboardInterrupt) or not hasattr(signal, "setitimer"):
        otherwise(dropped)
        return

    def again(*_: object) -> NoReturn:
        raise error

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _fail(command: str, message: str, status: int) -> None:
    one_line = " ".join(message.split())
    with suppress(OSError):  # nobody reads it any more
        print(f"{command}: {one_line}", file=sys.stderr, flush=True)
    sys.exit(status)


def shown(value: object) -> str:
    """``value`` as a message quotes it, cut where it is long."""
    try:
        text = repr(without_credentials(value) if isinstance(value, str) and "://" in value else value)
    except ValueError:  # more digits than Python converts to text
        return "a number with thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def without_credentials(url: str) -> str:
    """Take user and password out of ``https://user:token@host/path``; of ssh the user stays, it is no secret.

    Where they hold what ought to be quoted, too much is taken out rather than too little.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        # ``git@host:path`` is git's own way to write an address, and knows no password.
        return url.rpartition("@")[2] if re.match("[^@/:]+:[^@]*@", url) else url
    if not rest.startswith("/"):
        user, _, rest = rest.rpartition("@")
        rest = f"{user.partition(':')[0]}@{rest}" if user and scheme == "ssh" else rest
    return f"{scheme}{separator}{re.split('[?#]', rest)[0]}"  # a driver takes a password there, too
