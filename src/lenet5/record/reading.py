"""Results and models, read back from the record."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lenet5.errors import UserError
from lenet5.files import read_json
from lenet5.outs import EVALUATION, HISTORY, PREDICTIONS
from lenet5.params import Params
from lenet5.record.addresses import store_uri
from lenet5.record.advice import advice
from lenet5.record.evidence import damage_told, read_evidence
from lenet5.record.lineage import experiments_called
from lenet5.record.onnx_model import onnx_file
from lenet5.record.promotion import CHAMPION
from lenet5.record.result import Measured, read_predictions, recorded_figures
from lenet5.record.store import DIFF, RESULT, TRAINING, every_run, experiment_name, reader, tagged, user_errors
from lenet5.results.history import read_history
from lenet5.workspace import PARAMS_FILE

_MODELS = "models:/"
_THERE = " ({}); `mlflow ui` shows what there is"


@dataclass(frozen=True)
class Recorded:
    """A recorded result, fetched: ``params`` and ``diff`` (None when the tree was clean) are files."""

    run_id: str
    name: str
    commit: str
    params: Path
    diff: Path | None
    figures: dict[str, float]
    weights_digest: str


def fetch(reference: str, params: Params, folder: Path) -> Recorded:
    """Find a complete result as ``find_run`` does; its files go to ``folder``.

    Raises UserError where there is no such result, or it is not complete.
    """
    uri = store_uri()
    client = reader(uri)
    with user_errors(uri, then=_THERE.format(reference)):
        run = find_run(client, reference, params)
        run_id = run.info.run_id
        dirty = run.data.tags.get("git.dirty") == "true"
        return Recorded(
            run_id=run_id,
            name=run.info.run_name,
            commit=run.data.tags.get("mlflow.source.git.commit", ""),
            params=_download(client, run, Path("pipeline") / PARAMS_FILE, folder),
            diff=_download(client, run, Path(DIFF), folder) if dirty else None,
            figures=recorded_figures(run.data.metrics),
            weights_digest=run.data.tags["digest.weights"],
        )


def fetch_measured(reference: str, params: Params, folder: Path) -> Measured:
    """Find a complete result as ``find_run`` does, or a model version by its own evidence, whose run may be gone.

    Its files go through ``folder``. Raises UserError where there is none, or several of that name, or it is not
    complete.
    """
    uri = store_uri()
    client = reader(uri)
    with user_errors(uri, then=_THERE.format(reference)):
        model = _as_model(reference, params)
        kept = read_evidence(client, uri, _version(client, model), folder) if model else None
        return kept or measured(client, find_run(client, reference, params), folder)


def fetch_best(params: Params, count: int) -> list[Measured]:
    """The complete results of the experiment with the highest test accuracy, the best first, ``count`` at most.

    One of each weights. Raises UserError where there are not two.
    """
    uri = store_uri()
    client = reader(uri)
    name = experiment_name(params)
    with user_errors(uri, then="; `mlflow ui` shows what there is"), tempfile.TemporaryDirectory() as folder:
        experiment = client.get_experiment_by_name(name)
        runs = every_run(client, experiment.experiment_id, f"tags.`{RESULT}` LIKE '%'") if experiment else []
        best: dict[str, MlflowRun] = {}
        for run in sorted(runs, key=lambda one: -recorded_figures(one.data.metrics).get("test_accuracy", 0)):
            best.setdefault(run.data.tags.get("digest.weights", run.info.run_id), run)
        if len(best) < 2:
            raise UserError(f"{name}: {len(best)} complete results, nothing to compare; `dvc exp run` makes another")
        chosen = list(best.values())[:count]
        return [measured(client, run, Path(tempfile.mkdtemp(dir=folder))) for run in chosen]


def measured(client: MlflowClient, run: MlflowRun, folder: Path) -> Measured:
    """The run's figures; its files go through ``folder``. Raises UserError where they cannot be had."""
    evaluation, predictions, history = (
        _download(client, run, path, folder) for path in (EVALUATION, PREDICTIONS, HISTORY)
    )
    name = f"{run.info.run_name} ({run.info.run_id[:8]})"
    with damage_told(f"run {name}"):
        return Measured(
            name=name,
            params=run.data.params,
            evaluation=read_json(evaluation),
            predictions=read_predictions(predictions),
            data_digest=run.data.tags.get("digest.data", ""),
            history=read_history(history),
        )


def find_run(client: MlflowClient, reference: str, params: Params) -> MlflowRun:
    """The run of a complete result by its id, its name, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or champion.

    Raises UserError where there is none, or several of that name, or it is not complete.
    """
    model = _as_model(reference, params)
    if model:
        run = _run_of_version(client, _version(client, model))
    elif re.fullmatch("[0-9a-f]{32}", reference):
        run = client.get_run(reference)
    else:
        run = _run_of_name(client, reference, params)
    if RESULT not in run.data.tags:
        name = f"{run.info.run_name} ({run.info.run_id})"
        raise UserError(f"run {name} is not a complete result; `make record` completes that of its own workspace")
    return run


def _as_model(reference: str, params: Params) -> str:
    """``reference`` as a model URI, empty where it is a run."""
    if reference == CHAMPION:
        return f"{_MODELS}{params.register_.model_name}@{CHAMPION}"
    return reference if reference.startswith(_MODELS) else ""


def _run_of_name(client: MlflowClient, name: str, params: Params) -> MlflowRun:
    experiment = client.get_experiment_by_name(experiment_name(params))
    quote = '"' if "'" in name else "'"
    called = f"attributes.run_name = {quote}{name}{quote}"
    named = client.search_runs([experiment.experiment_id], called) if experiment else []
    if experiment and not named:
        named = [run for tags in experiments_called(name) for run in _with_tags(client, experiment.experiment_id, tags)]
    complete = [run for run in named if RESULT in run.data.tags]
    if not named:
        raise UserError(f"{name}: no run of this id or name; `mlflow ui` shows those of {experiment_name(params)}")
    if len(complete) > 1:
        ids = ", ".join(run.info.run_id for run in complete)
        raise UserError(f"{name}: {len(complete)} runs have this name; give the id of one: {ids}")
    return (complete or named)[0]


def _with_tags(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> list[MlflowRun]:
    asked = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment_id], asked))


def _version(client: MlflowClient, reference: str) -> ModelVersion:
    name, at, alias = reference.removeprefix(_MODELS).partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, _, number = name.partition("/")
    return client.get_model_version(name, number)


def _run_of_version(client: MlflowClient, version: ModelVersion) -> MlflowRun:
    """The run of a model version; where `register` was killed over that and another took its place, that other."""
    run = client.get_run(str(version.run_id))
    if RESULT in run.data.tags or TRAINING not in run.data.tags:
        return run
    others = tagged(client, run.info.experiment_id, TRAINING, run.data.tags[TRAINING])
    return next((other for other in others if RESULT in other.data.tags), run)


def _download(client: MlflowClient, run: MlflowRun, path: Path, folder: Path) -> Path:
    try:
        return Path(client.download_artifacts(run.info.run_id, path.as_posix(), str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"{path} of run {run.info.run_id} cannot be had from MLflow: {advice(str(error))}") from None


def fetch_model(reference: str, folder: Path) -> Path:
    """Download the MLflow model at ``models:/...`` or ``runs:/...`` into ``folder``; gives the folder it lies in.

    Raises UserError where there is none, or none with an ONNX file.
    """
    uri = store_uri()
    reader(uri)
    mlflow.set_tracking_uri(uri)
    with user_errors(uri, then=_THERE.format(reference)):
        found = Path(mlflow.artifacts.download_artifacts(reference, dst_path=str(folder)))
    if not (found / "MLmodel").is_file():
        raise UserError(f"{reference}: its files are not where MLflow's record says; bring them back there")
    onnx_file(found, reference)
    return found


def fetch_onnx(reference: str) -> bytes:
    """The ONNX file of the MLflow model at ``reference``. Raises as ``fetch_model``."""
    with tempfile.TemporaryDirectory() as folder:
        return onnx_file(fetch_model(reference, Path(folder)), reference).read_bytes()
