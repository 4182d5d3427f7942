"""What a model version was judged by, kept with the model itself: it outlives the run that the version came from."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelStatus
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from lenet5.data.fashion_mnist import data_digest
from lenet5.errors import UserError
from lenet5.files import read_json
from lenet5.outs import EVALUATION, HISTORY, PREDICTIONS
from lenet5.record.result import Measured, Result, read_predictions
from lenet5.results.history import read_history

MLMODEL = "MLmodel"
_FOLDER, _ABOUT = "evidence", "about.json"
_KEPT = (EVALUATION, PREDICTIONS, HISTORY)

Entity = TypeVar("Entity")


@dataclass(frozen=True)
class _About:
    run_name: str
    run_id: str
    params: dict[str, str]
    data_digest: str


def model_id_of(version: ModelVersion) -> str:
    """The logged model that the version is."""
    return str(version.source).removeprefix("models:/")


def is_whole(client: MlflowClient, version: ModelVersion) -> bool:
    """Whether the run and the logged model that the version names are there."""
    run = _found(client.get_run, str(version.run_id))
    in_use = run is not None and run.info.lifecycle_stage == LifecycleStage.ACTIVE
    return in_use and _found(client.get_logged_model, model_id_of(version)) is not None


def log_evidence(client: MlflowClient, model_id: str, run: MlflowRun, result: Result) -> None:
    """Give the logged model what it was judged by, once."""
    if _keeps_evidence(client, model_id):
        return
    about = _About(run.info.run_name, run.info.run_id, result.recorded_params, data_digest())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in _KEPT:
            shutil.copy(path, folder / path.name)
        (folder / _ABOUT).write_text(json.dumps(vars(about), indent=2), encoding="utf-8")
        log_files(client, model_id, folder, _ABOUT, _FOLDER)


def log_files(client: MlflowClient, model_id: str, folder: Path, last: str, place: str = "") -> None:
    """Give the logged model the files of ``folder`` at ``place``; the one called ``last`` says that all are there."""
    with tempfile.TemporaryDirectory() as kept:
        final = (folder / last).rename(Path(kept, last))
        client.log_model_artifacts(model_id, str(folder), place or None)
        client.log_model_artifact(model_id, str(final), place or None)


def has_evidence(client: MlflowClient, version: ModelVersion) -> bool:
    """Whether the version's model is there and keeps all it was judged by; those of earlier releases do not."""
    model_id = model_id_of(version)
    return _found(client.get_logged_model, model_id) is not None and _keeps_evidence(client, model_id)


def run_holds(client: MlflowClient, run_id: str, path: Path) -> bool:
    """Whether the run is there and has the artifact ``path``."""
    folder = path.parent.as_posix()
    return _found(client.get_run, run_id) is not None and any(
        item.path == path.as_posix() for item in client.list_artifacts(run_id, folder)
    )


def models_of(client: MlflowClient, experiment_id: str, run_id: str) -> list[LoggedModel]:
    """The run's logged models; not what a process leaves that was killed while it logged one."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    return [model for model in found if model.status == LoggedModelStatus.READY]


def has_files(client: MlflowClient, version: ModelVersion) -> bool:
    """Whether the files that the version's model is loaded from are there."""
    return any(item.path == MLMODEL for item in client.list_logged_model_artifacts(model_id_of(version)))


def _keeps_evidence(client: MlflowClient, model_id: str) -> bool:
    kept = {item.path for item in client.list_logged_model_artifacts(model_id, _FOLDER)}
    return kept >= {f"{_FOLDER}/{name}" for name in (_ABOUT, *(path.name for path in _KEPT))}


def _found(get: Callable[[str], Entity], identifier: str) -> Entity | None:
    """What the store has under ``identifier``; a store that cannot say raises what it raises."""
    try:
        return get(identifier)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None


def download_from_model(client: MlflowClient, uri: str, model_id: str, path: str, folder: Path) -> Path:
    """Download what the logged model keeps at ``path``, all of it for an empty one, into ``folder``.

    By its place: MLflow looks up ``models:/`` in the store of the process, which need not be the one at ``uri``.
    """
    place = f"{client.get_logged_model(model_id).artifact_location}/{path}".rstrip("/")
    return Path(mlflow.artifacts.download_artifacts(place, dst_path=str(folder), tracking_uri=uri))


@contextmanager
def damage_told(owner: str) -> Iterator[None]:
    """Say of files that were downloaded, and cannot be read, who keeps them: where they lay here tells nobody much."""
    try:
        yield
    except (UserError, TypeError):
        raise UserError(f"{owner} keeps damaged files of its evaluation; bring them back from a copy") from None


def read_evidence(client: MlflowClient, uri: str, version: ModelVersion, folder: Path) -> Measured | None:
    """What ``version`` was judged by, through ``folder``; None where its model has it not: the run may.

    Raises UserError where it is damaged.
    """
    if not has_evidence(client, version):
        return None
    place = download_from_model(client, uri, model_id_of(version), _FOLDER, folder)
    with damage_told(f"model version {version.version} of {version.name}"):
        about = _About(**read_json(place / _ABOUT))
        return Measured(
            name=f"{about.run_name} ({about.run_id[:8]})",
            params=about.params,
            evaluation=read_json(place / EVALUATION.name),
            predictions=read_predictions(place / PREDICTIONS.name),
            data_digest=about.data_digest,
            history=read_history(place / HISTORY.name),
        )
