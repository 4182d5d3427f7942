import ast
import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lenet5.errors import Ended, UserError, one_line_errors


def end(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended, one_line_errors("train"):
        raise error
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.endswith("\n")
    (line,) = output.err.splitlines()
    assert isinstance(ended.value.code, int)
    return ended.value.code, line


def run(program: str) -> subprocess.CompletedProcess[str]:
    """A program that has run in a process of its own: it changes what signals do."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_a_mistake_is_told_in_one_line_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(capsys, UserError("train.lr: 0 is not allowed")) == (1, "train: train.lr: 0 is not allowed")


def test_a_mistake_of_several_lines_is_told_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(capsys, UserError("one\n  two\r\nthree\u2028four\n")) == (1, "train: one two three four")


def test_ctrl_c_ends_with_the_status_shells_expect(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = end(capsys, KeyboardInterrupt())
    assert status == 130
    assert line.startswith("train: interrupted")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_with_its_own_status_and_name(
    capsys: pytest.CaptureFixture[str], number: signal.Signals, status: int
) -> None:
    assert end(capsys, Ended(number)) == (status, f"train: ended by {number.name}; `dvc repro` takes it up again")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_comes_while_finalizers_run_ends_the_process_too(number: signal.Signals, status: int) -> None:
    program = f"""
        import os, time
        from lenet5.errors import end_as_by_ctrl_c, one_line_errors

        class Signalled:
            def __del__(self):
                os.kill(os.getpid(), {number:d})

        class Slow:
            def __del__(self):
                time.sleep(1)

        end_as_by_ctrl_c()
        with one_line_errors("train"):
            Signalled()
            Slow()
            time.sleep(60)
        """
    done = run(program)
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    assert line.startswith("train: ")


def test_any_other_error_of_a_finalizer_is_told_as_python_tells_it() -> None:
    program = """
        from lenet5.errors import end_as_by_ctrl_c

        class Broken:
            def __del__(self):
                raise ValueError("a bug")

        end_as_by_ctrl_c()
        Broken()
        """
    done = run(program)
    assert done.returncode == 0
    assert "Exception ignored in" in done.stderr
    assert "ValueError: a bug" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_full_or_locked_disk_is_told_in_one_line_with_the_file(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    status, line = end(capsys, OSError(number, os.strerror(number), "models/lenet5.pth"))
    assert status == 1
    assert line.startswith(f"train: {os.strerror(number)} (models/lenet5.pth); ")


@pytest.mark.parametrize("number", [errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EBUSY])
def test_a_place_where_no_file_can_be_is_told_in_one_line(capsys: pytest.CaptureFixture[str], number: int) -> None:
    status, line = end(capsys, OSError(number, os.strerror(number), "models/lenet5.pth"))
    assert (status, line.partition("; ")[0]) == (1, f"train: {os.strerror(number)} (models/lenet5.pth)")
    assert line.endswith("name another place, or clear that one")


def test_a_full_disk_is_told_even_where_the_file_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(capsys, OSError(errno.ENOSPC, "No space left on device"))[1].startswith(
        "train: No space left on device;"
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        ValueError("a bug"),
        FileNotFoundError(errno.ENOENT, "gone"),
        OSError("odd"),
        SystemExit(3),
    ],
    ids=repr,
)
def test_anything_else_keeps_its_traceback(capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, one_line_errors("train"):
        raise error
    assert raised.value is error
    assert capsys.readouterr().err == ""


def test_what_goes_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with one_line_errors("train"):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("deed", ["dvc gc", "git checkout", "git reset", "git clean", "git stash", "delete it", "rm -"])
def test_no_message_advises_what_would_destroy_a_persons_work(deed: str) -> None:
    repository = Path(__file__).parents[2]
    for path in (*repository.glob("src/**/*.py"), *repository.glob("stages/*.py")):
        said = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert not [text for text in said if isinstance(text, str) and deed in text], path
