import math
import os
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenet5.errors import UserError
from lenet5.results.history import EpochRow, HistoryFile, read_history

finite = st.floats(allow_nan=False, allow_infinity=False)


def row(epoch: int, validation: float | None = 0.5) -> EpochRow:
    return EpochRow(
        epoch=epoch,
        learning_rate=0.1,
        running_loss=1.0,
        running_accuracy=0.5,
        train_loss=0.9,
        train_accuracy=0.6,
        validation_loss=validation,
        validation_accuracy=validation,
        test_loss=1.1,
        test_accuracy=0.4,
        gap_loss=0.2,
        gap_accuracy=0.2,
    )


def fail_after(path: Path, epochs: int, error: type[BaseException] = RuntimeError) -> None:
    with HistoryFile(path) as history:
        for epoch in range(epochs):
            history.append(row(epoch + 1))
        raise error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plots/history.csv"


def test_each_epoch_can_be_read_the_moment_it_ends(path: Path) -> None:
    with HistoryFile(path) as history:
        for epoch in (1, 2, 3):
            history.append(row(epoch))
            assert read_history(path)["epoch"].tolist() == list(range(1, epoch + 1))
    assert path.read_text().count("epoch") == 1
    assert path.read_bytes().endswith(b"\n")
    assert b"\r" not in path.read_bytes()


def test_an_earlier_history_stays_until_the_first_epoch_ends(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("an earlier history")
    with HistoryFile(path) as history:
        assert path.read_text() == "an earlier history"
        history.append(row(1))
        assert read_history(path)["epoch"].tolist() == [1]
    assert read_history(path)["epoch"].tolist() == [1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_earlier_history_comes_back_when_training_fails(path: Path, error: type[BaseException], epochs: int) -> None:
    path.parent.mkdir()
    path.write_bytes(b"an earlier\r\nhistory")
    with pytest.raises(error):
        fail_after(path, epochs, error)
    assert path.read_bytes() == b"an earlier\r\nhistory"


def test_an_earlier_history_is_not_even_touched_when_training_fails_before_its_first_epoch(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("an earlier history")
    path.chmod(0o444)
    os.utime(path, (1, 1))
    with pytest.raises(RuntimeError):
        fail_after(path, 0)
    assert path.read_text() == "an earlier history"
    assert path.stat().st_mtime == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_failed_first_training_leaves_no_history(path: Path, epochs: int) -> None:
    with pytest.raises(RuntimeError):
        fail_after(path, epochs)
    assert not path.exists()


def test_a_training_that_goes_on_starts_with_the_epochs_before(path: Path) -> None:
    with HistoryFile(path, [row(1), row(2)]) as history:
        assert read_history(path)["epoch"].tolist() == [1, 2]
        history.append(row(3))
    assert read_history(path)["epoch"].tolist() == [1, 2, 3]


def test_an_earlier_history_comes_back_when_a_training_that_goes_on_fails(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("an earlier history")
    with pytest.raises(RuntimeError), HistoryFile(path, [row(1)]):
        raise RuntimeError
    assert path.read_text() == "an earlier history"


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_disk_that_is_full_at_the_first_row_leaves_the_earlier_history(path: Path, goes_on: bool) -> None:
    path.parent.mkdir()
    path.write_text("an earlier history")
    code = (
        "import resource, signal, sys, pathlib\n"
        "from tests.unit.results.test_history import row\n"
        "from lenet5.results.history import HistoryFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"  # room for the earlier file, and for no row
        f"with HistoryFile(path, [row(1)] if {goes_on} else []) as history:\n"
        "    history.append(row(2))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert path.read_text() == "an earlier history"


@given(st.tuples(*[finite] * 11))
def test_every_number_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: tuple[float, ...]) -> None:
    path = tmp_path_factory.mktemp("history") / "history.csv"
    written = EpochRow(7, *values)
    with HistoryFile(path) as history:
        history.append(written)
    (read,) = read_history(path).to_dict("records")
    assert read == asdict(written)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'epoch\n"1', b"epoch,train_loss\n1,0.5\n"], ids=repr)
def test_a_damaged_history_is_told_in_a_line(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: not the table that the stage train left"):
        read_history(path)


def test_a_missing_history_is_told_in_a_line(path: Path) -> None:
    with pytest.raises(UserError, match=f"^{path}: not found; `dvc repro train` makes it$"):
        read_history(path)


def test_without_validation_images_the_columns_are_empty(path: Path) -> None:
    with HistoryFile(path) as history:
        history.append(row(1, validation=None))
    (read,) = read_history(path).to_dict("records")
    assert math.isnan(read["validation_loss"])
    assert math.isnan(read["validation_accuracy"])
    assert read["gap_loss"] == 0.2
