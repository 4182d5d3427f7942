import sqlite3
from pathlib import Path

import filelock
import pytest
from mlflow.exceptions import MlflowException

from lenet5.errors import UserError
from lenet5.record import store as module
from lenet5.record.store import Store, reader, user_errors


def test_who_only_reads_waits_for_nobody(store: Store, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.1)
    with filelock.FileLock(workspace / "mlflow.db.lock"):
        assert reader(store.uri).get_experiment(store.experiment_id).experiment_id == store.experiment_id


class NoCredentialsError(Exception):
    """As botocore has it."""

    __module__ = "botocore.exceptions"


def refused(error: Exception) -> str:
    with pytest.raises(UserError) as told, user_errors("sqlite:////somewhere/mlflow.db"):
        raise error
    return str(told.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoCredentialsError("Unable to locate credentials"), "artifacts of MLflow at sqlite:////somewhere/mlflow.db: "
         "Unable to locate credentials; then `dvc repro` goes on"),
        (MlflowException("(sqlite3.OperationalError) database or disk is full"), "its disk is full; make room"),
        (MlflowException("(sqlite3.OperationalError) database is locked"), "another program holds it; end that"),
        (MlflowException("attempt to write a readonly database"), "you may not write there; ask its owner"),
        (MlflowException("unable to open database file"), "you may not write there; ask its owner"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_a_person_can_mend_is_one_line_that_says_how(error: Exception, said: str) -> None:
    assert said in refused(error)


def test_what_a_person_cannot_mend_keeps_its_traceback() -> None:
    with pytest.raises(sqlite3.OperationalError), user_errors("sqlite:////somewhere/mlflow.db"):
        raise sqlite3.OperationalError("no such table: runs")


def test_what_goes_wrong_under_the_lock_is_not_told_as_a_bad_address(store: Store) -> None:
    with pytest.raises(NotADirectoryError, match="something else"), store.exclusive():
        raise NotADirectoryError("something else")
