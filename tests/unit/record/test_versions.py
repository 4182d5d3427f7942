import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lenet5.outs import PREDICTIONS
from lenet5.params import Params
from lenet5.record import versions
from lenet5.record.result import Result
from lenet5.record.store import Store

NAME = "lenet5-fashionmnist"
IMAGES = 100


def write_predictions(right: int) -> None:
    """Of a model that is right on the first ``right`` images."""
    PREDICTIONS.parent.mkdir(exist_ok=True)
    predicted = ["boot"] * right + ["bag"] * (IMAGES - right)
    pd.DataFrame({"true": "boot", "predicted": predicted}).to_csv(PREDICTIONS, index=False)


def new_version(store: Store) -> ModelVersion:
    """With the predictions that lie there now."""
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_artifact(run_id, str(PREDICTIONS), PREDICTIONS.parent.as_posix())
    model = store.client.create_logged_model(store.experiment_id, source_run_id=run_id)
    return store.client.create_model_version(NAME, f"models:/{model.model_id}", run_id, model_id=model.model_id)


@pytest.fixture
def result(params: Params, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(versions, "summary_of", lambda _: "")
    return cast("Result", SimpleNamespace(params=params, evaluation={"gap": {"accuracy": 0.01}}))


@pytest.fixture
def champion(store: Store, result: Result) -> ModelVersion:
    """The first, right on 90 of 100."""
    versions.ensure_model(store.client, NAME)
    write_predictions(right=90)
    version = new_version(store)
    assert versions.decide_once(store, version, result).became == "champion"
    return version


@pytest.mark.parametrize(
    "error", [MlflowException("Max retries exceeded: 503"), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.usefixtures("champion")
def test_a_champion_that_cannot_be_asked_for_now_is_compared_another_time(
    store: Store, result: Result, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write_predictions(right=100)
    version = new_version(store)

    def fails(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "download_artifacts", fails)
        with pytest.raises(type(error)):
            versions.decide_once(store, version, result)
    assert versions.decide_once(store, store.client.get_model_version(NAME, "2"), result).became == "champion"


def test_a_champion_whose_model_is_deleted_is_compared_by_its_run(
    store: Store, result: Result, champion: ModelVersion
) -> None:
    store.client.delete_logged_model(str(champion.source).removeprefix("models:/"))
    write_predictions(right=100)
    assert "right on 10 test images" in versions.decide_once(store, new_version(store), result).reason


@pytest.mark.parametrize(("damaged", "said"), [(False, "are gone with its model and run"), (True, "keeps damaged")])
def test_without_a_champions_predictions_nobody_replaces_it(
    store: Store, result: Result, champion: ModelVersion, workspace: Path, damaged: bool, said: str
) -> None:
    (kept,) = workspace.joinpath("mlruns").rglob(f"{champion.run_id}/**/{PREDICTIONS.name}")
    if damaged:
        kept.write_text("")
    else:
        kept.unlink()
    write_predictions(right=100)
    decision = versions.decide_once(store, new_version(store), result)
    assert decision.became == "challenger"
    assert said in decision.reason
    assert "`lenet5 champion` moves the alias" in decision.reason
