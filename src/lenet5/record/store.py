"""The MLflow record; the only module that imports mlflow.

DVC's outs are the truth: everything here can be rebuilt from them. A run is found by what it records, not by its
name: the tag ``result`` identifies a finished one, ``training`` one whose training is done.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

# Read when mlflow is imported; what a person has set stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import filelock
import mlflow.onnx
import numpy as np
import pandas as pd
from fastapi import FastAPI
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelStatus, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lenet5.errors import UserError
from lenet5.experiment_page import experiment_tags
from lenet5.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.files import digest, read_json
from lenet5.history import EpochRow
from lenet5.lineage import EXPERIMENT_TAGS, Code, data_digest, without_credentials
from lenet5.model_card import completed, page, summary
from lenet5.outs import CARD, CARD_PAGE, EVALUATION, ONNX, PREDICTIONS, PROGRAM, REGISTRATION
from lenet5.params import Params
from lenet5.promotion import Decision, decide
from lenet5.record import (
    Measured,
    Point,
    Result,
    best_figures,
    epoch_points,
    final_figures,
    flat_params,
    history_points,
    read_predictions,
    run_name,
)
from lenet5.workspace import LOCK_FILE, PARAMS_FILE, PIPELINE_FILE, main_workspace, store_uri

ATTEMPT, TRAINING, COMPLETING, RESULT, HISTORY_FROM = "attempt", "training", "completing", "result", "history_from"
DIFF = "pipeline/changes.diff"
_DESCRIPTION = "mlflow.note.content"  # of a run, which the UI shows
_FAILURE_TAGS = ("failure", _DESCRIPTION)
_MODEL = (
    "LeNet-5 on FashionMNIST as ONNX: (batch, 1, 28, 28) grey levels from 0 to 1, in; ten logits, out. The alias "
    "champion is the best version so far, challenger the latest that did not prove better. Each version's description "
    "says how good it is, and why it is what it is."
)
_POINTS_A_CALL = 1000  # the most that MLflow's log_batch takes
_LOCK_SECONDS = 600


class Store:
    """An experiment in a tracking store."""

    def __init__(self, client: MlflowClient, uri: str, root: Path, experiment_id: str) -> None:
        self.client, self.uri, self.root, self.experiment_id = client, uri, root, experiment_id

    def runs(self, tag: str, value: str) -> list[MlflowRun]:
        """The runs that carry ``tag``, oldest first."""
        return _tagged(self.client, self.experiment_id, tag, value)

    def create_run(self, name: str, tags: Mapping[str, str], params: Mapping[str, str], code: Code) -> MlflowRun:
        """Open a run."""
        run = self.client.create_run(self.experiment_id, tags=dict(tags), run_name=name)
        self.describe(run, params, code)
        return run

    def describe(self, run: MlflowRun, params: Mapping[str, str], code: Code) -> None:
        """Give a run its params, and what the working tree changed of its commit."""
        if code.diff:
            self.client.log_text(run.info.run_id, code.diff + "\n", DIFF)
        if not run.data.params:
            self.client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in params.items()])

    def close_training(self, run_id: str, training_digest: str) -> None:
        """Tag a run with what training produced; when an earlier run holds the very same, this one goes."""
        if any(run.info.run_id != run_id for run in self.runs(TRAINING, training_digest)):
            self.client.delete_run(run_id)
            return
        self.client.set_tag(run_id, TRAINING, training_digest)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes of this workspace out; a killed process holds nothing."""
        with _lock(self.root):
            yield


def _tagged(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[MlflowRun]:
    """The runs that carry ``tag``, oldest first."""
    return list(client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", order_by=["start_time ASC"]))


class TrainingRun:
    """The run that ``train`` streams to: opened by the first call, found again by its attempt after a failure."""

    def __init__(self, store: Store, attempt: str, params: Params, code: Code, tags: Mapping[str, str]) -> None:
        self._store = store
        opened = store.runs(ATTEMPT, attempt)
        run = opened[0] if opened else _open_run(store, params, code, {ATTEMPT: attempt, **tags})
        self.run_id: str = run.info.run_id
        self._there: set[tuple[str, int]] = set()
        if opened:
            # Epochs after the last checkpoint are trained again, and would come with new timestamps.
            self._there = _points_there(store.client, self.run_id, run.data.metrics)
            store.describe(run, _recipe(params), code)
            # What ends it is what made the result: it may be another experiment, from another commit.
            store.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            store.client.update_run(self.run_id, status="RUNNING", name=run_name(params))
            for tag in (*_FAILURE_TAGS, *EXPERIMENT_TAGS):
                if tag in run.data.tags and tag not in tags:
                    store.client.delete_tag(self.run_id, tag)
        self._monitor: SystemMetricsMonitor | None = None
        if params.register_.system_metrics:
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=bool(opened), tracking_uri=store.uri)
            self._monitor.start()

    def log_points(self, points: Sequence[Point]) -> None:
        """Add points; MLflow keeps one of those that are equal in key, step, timestamp and value."""
        new = [point for point in points if (point.key, point.step) not in self._there]
        _log_points(self._store.client, self.run_id, new)

    def finish(self, training_digest: str) -> None:
        """As ``Store.close_training``."""
        self._stop_monitor()
        with self._store.exclusive():
            self._store.close_training(self.run_id, training_digest)

    def fail(self, reason: str, killed: bool) -> None:
        """Close the run as FAILED, or KILLED, with the reason as a tag and in its description."""
        self._stop_monitor()
        for tag in _FAILURE_TAGS:
            self._store.client.set_tag(self.run_id, tag, f"Training did not end: {reason}")
        self._store.client.set_terminated(self.run_id, "KILLED" if killed else "FAILED")

    def _stop_monitor(self) -> None:
        if self._monitor:
            self._monitor.finish()
            self._monitor = None


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


def fetch(reference: str, folder: Path) -> Recorded:
    """Find a result by run id, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; its files go to ``folder``.

    Raises UserError where there is no such result, or it is not complete.
    """
    uri = store_uri()
    client = _reader(uri)
    with user_errors(uri):
        run = _run_of_model(client, reference) if reference.startswith("models:/") else client.get_run(reference)
        run_id = run.info.run_id
        if RESULT not in run.data.tags:
            raise UserError(f"run {run_id} is not a complete result; `dvc repro` completes its own")
        dirty = run.data.tags.get("git.dirty") == "true"
        return Recorded(
            run_id=run_id,
            name=run.info.run_name,
            commit=run.data.tags.get("mlflow.source.git.commit", ""),
            params=Path(client.download_artifacts(run_id, "pipeline/params.yaml", str(folder))),
            diff=Path(client.download_artifacts(run_id, DIFF, str(folder))) if dirty else None,
            figures=run.data.metrics,
            weights_digest=run.data.tags["digest.weights"],
        )


def fetch_measured(reference: str, params: Params, folder: Path) -> Measured:
    """Find a complete result by run id, run name or ``models:/...``; its files go through ``folder``.

    Raises UserError where there is none, or several of that name, or it is not complete.
    """
    uri = store_uri()
    client = _reader(uri)
    with user_errors(uri, then=f" ({reference}); `mlflow ui` shows what there is"):
        if reference.startswith("models:/"):
            run = _run_of_model(client, reference)
        elif re.fullmatch("[0-9a-f]{32}", reference):
            run = client.get_run(reference)
        else:
            run = _run_of_name(client, reference, params)
        if RESULT not in run.data.tags:
            raise UserError(
                f"run {run.info.run_name} ({run.info.run_id}) is not a complete result: no figures to compare"
            )
        evaluation, predictions = (_download(client, run, path, folder) for path in (EVALUATION, PREDICTIONS))
    return Measured(
        name=f"{run.info.run_name} ({run.info.run_id[:8]})",
        params=run.data.params,
        evaluation=read_json(evaluation),
        predictions=read_predictions(predictions),
        data_digest=run.data.tags.get("digest.data", ""),
    )


def _run_of_name(client: MlflowClient, name: str, params: Params) -> MlflowRun:
    experiment = client.get_experiment_by_name(_experiment_name(params))
    quote = '"' if "'" in name else "'"
    called = f"attributes.run_name = {quote}{name}{quote}"
    named = client.search_runs([experiment.experiment_id], called) if experiment else []
    complete = [run for run in named if RESULT in run.data.tags]
    if not named:
        raise UserError(f"{name}: no run of this id or name; `mlflow ui` shows those of {_experiment_name(params)}")
    if len(complete) > 1:
        ids = ", ".join(run.info.run_id for run in complete)
        raise UserError(f"{name}: {len(complete)} runs have this name; give the id of one: {ids}")
    return (complete or named)[0]


def _experiment_name(params: Params) -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or params.register_.experiment


def _download(client: MlflowClient, run: MlflowRun, path: Path, folder: Path) -> Path:
    try:
        return Path(client.download_artifacts(run.info.run_id, path.as_posix(), str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"{path} of run {run.info.run_id} cannot be had from MLflow: {_advice(str(error))}") from None


def fetch_model(reference: str, folder: Path) -> Path:
    """Download the MLflow model at ``models:/...`` or ``runs:/...`` into ``folder``; gives the folder it lies in.

    Raises UserError where there is none, or none of the ONNX flavour.
    """
    uri = store_uri()
    _reader(uri)
    mlflow.set_tracking_uri(uri)
    with user_errors(uri, then=f" ({reference}); `mlflow ui` shows what there is"):
        found = Path(mlflow.artifacts.download_artifacts(reference, dst_path=str(folder)))
    if not (found / "MLmodel").is_file():
        raise UserError(f"{reference}: its files are not where MLflow's record says; bring them back there")
    if "onnx" not in Model.load(found).flavors:
        raise UserError(f"{reference}: not a model of MLflow's ONNX flavour, which is what the stage register logs")
    return found


def fetch_onnx(reference: str) -> bytes:
    """The ONNX file of the MLflow model at ``reference``. Raises as ``fetch_model``."""
    with tempfile.TemporaryDirectory() as folder:
        return onnx_file(fetch_model(reference, Path(folder))).read_bytes()


def onnx_file(folder: Path) -> Path:
    """Where the MLflow model in ``folder`` keeps its ONNX file."""
    return folder / str(Model.load(folder).flavors["onnx"]["data"])


def pack_model(content: bytes, folder: Path) -> Path:
    """Make an ONNX model, which is in no store, an MLflow model in ``folder``; returns ``folder``."""
    import onnx

    mlflow.onnx.save_model(onnx.load_model_from_string(content), folder, **_onnx_facts())
    return folder


def scoring_app(folder: Path) -> FastAPI:
    """MLflow's scoring server of the model in ``folder``: /ping, /health, /version and /invocations."""
    from mlflow.pyfunc import load_model, scoring_server

    _quiet_and_impatient()
    app: FastAPI = scoring_server.init(load_model(str(folder)))
    return app


def _run_of_model(client: MlflowClient, reference: str) -> MlflowRun:
    """The run of a model version; where `register` was killed over that and another took its place, that other."""
    name, at, alias = reference.removeprefix("models:/").partition("@")
    if at:
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = name.partition("/")
        version = client.get_model_version(name, number)
    run = client.get_run(str(version.run_id))
    if RESULT in run.data.tags or TRAINING not in run.data.tags:
        return run
    others = _tagged(client, run.info.experiment_id, TRAINING, run.data.tags[TRAINING])
    return next((other for other in others if RESULT in other.data.tags), run)


def connect(params: Params) -> Store:
    """Open the store and the experiment, creating what is not there.

    Raises UserError where it cannot be reached or used.
    """
    _quiet_and_impatient()
    root = main_workspace()
    uri = store_uri()
    name = _experiment_name(params)
    with user_errors(uri):
        # Two processes that create the same database at once would both fail.
        with _lock(root):
            _create_database(uri, root)
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                local = (root / "mlruns" / name).as_uri() if uri.startswith("sqlite:") else None
                created = client.create_experiment(name, artifact_location=local, tags=experiment_tags())
                return Store(client, uri, root, created)
        if experiment.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {name!r} was deleted: `mlflow experiments restore --experiment-id "
                f"{experiment.experiment_id}` brings it back, or set register.experiment to another name"
            )
        return Store(client, uri, root, experiment.experiment_id)


def _create_database(uri: str, root: Path) -> None:
    """Make the SQLite file of ``uri`` where there is none: whole or not at all, whoever is killed meanwhile."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{new.as_posix()}", (root / "mlruns").as_uri())
    store.engine.dispose()
    new.replace(path)


def _reader(uri: str) -> MlflowClient:
    """A client of a store that is there already. Raises UserError where it is a file that is not."""
    _quiet_and_impatient()
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not file.is_file():  # MLflow would make an empty one
        raise UserError(f"{file}: no MLflow record here; `dvc repro` makes it, MLFLOW_TRACKING_URI names another")
    with user_errors(uri):
        return MlflowClient(tracking_uri=uri)


def _quiet_and_impatient() -> None:
    # What a person can mend is said in one line, not in the log of a library and a library's library.
    for library in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # A person at a terminal waits for this: MLflow's own defaults retry a dead server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


@contextmanager
def user_errors(uri: str, then: str = "; then `dvc repro` goes on") -> Iterator[None]:
    """Turn what a person can mend about the store at ``uri`` into one line, which ends with ``then``."""
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UserError(f"MLflow at {without_credentials(uri)}: {_advice(str(error))}{then}") from error


def catch_up(store: Store, attempt: str, training_digest: str) -> bool:
    """Let the store know how ``attempt`` ended, where it did not hear that from training itself.

    Returns whether the store knows of that attempt.
    """
    with user_errors(store.uri), store.exclusive():
        runs = store.runs(ATTEMPT, attempt)
        for run in runs:
            if TRAINING not in run.data.tags:
                store.close_training(run.info.run_id, training_digest)
        return bool(runs)


def record(store: Store, result: Result, tags: Mapping[str, str], code: Code) -> dict[str, Any]:
    """Bring the record of ``result`` to completeness; what is there already stays as it is.

    Returns what became of it: run, model version, decision.
    """
    with user_errors(store.uri), store.exclusive():
        run = _find_or_create(store, result, tags, code)
        complete = RESULT in run.data.tags
        if not complete:
            _rename(store, run, result.params, tags)
            _complete(store, run, result)
        version = _version(store, run, result)
        decision = _decide(store, version, result)
        if not complete:
            _log_card(store.client, run, version, decision, result)
            store.client.set_terminated(run.info.run_id, "FINISHED")
            store.client.set_tag(run.info.run_id, RESULT, result.result_digest)
            store.client.delete_tag(run.info.run_id, COMPLETING)
        _close_superseded(store, result)
        return {
            "run_id": run.info.run_id,
            "run_name": run.info.run_name,
            "model": version.name,
            "version": int(version.version),
            **asdict(decision),
        }


def record_seeds(
    store: Store,
    params: Params,
    replicas: Sequence[tuple[int, Sequence[EpochRow], Mapping[str, float]]],
    summary: Mapping[str, float],
    tags: Mapping[str, str],
    code: Code,
) -> str:
    """Record replicas (seed, history, figures) as one run with ``summary`` and a child for each; its run id."""
    recipe = _recipe(params)
    with user_errors(store.uri):
        shared = {name: value for name, value in recipe.items() if name != "train.seed"}
        name = f"{run_name(params)}-and-{len(replicas) - 1}-more"
        parent = store.create_run(name, tags, shared | {"seeds": str(len(replicas))}, code)
        for seed, rows, figures in replicas:
            child_tags = {**tags, MLFLOW_PARENT_RUN_ID: parent.info.run_id}
            child = store.create_run(f"seed-{seed}", child_tags, recipe | {"train.seed": str(seed)}, code)
            _log_points(store.client, child.info.run_id, [point for row in rows for point in epoch_points(row, None)])
            _log_figures(store.client, child.info.run_id, figures)
        _log_figures(store.client, parent.info.run_id, summary)
        return str(parent.info.run_id)


def _log_figures(client: MlflowClient, run_id: str, figures: Mapping[str, float]) -> None:
    now = time.time_ns() // 1_000_000
    client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in figures.items()])
    client.set_terminated(run_id, "FINISHED")


def _find_or_create(store: Store, result: Result, tags: Mapping[str, str], code: Code) -> MlflowRun:
    finished = store.runs(RESULT, result.result_digest)
    if finished:
        return finished[0]
    trained = store.runs(TRAINING, result.training_digest)
    # One that `register` was killed over holds figures and files of its own result, never to be mixed with others.
    fit = [
        run
        for run in trained
        if RESULT not in run.data.tags and run.data.tags.get(COMPLETING, result.result_digest) == result.result_digest
    ]
    if fit:
        if not fit[0].data.params:  # the process that opened it was killed before it came to that
            store.describe(fit[0], _recipe(result.params), code)
        return fit[0]
    tags = {**tags, TRAINING: result.training_digest}
    if trained:  # only evaluate or export changed: a finished run is never rewritten
        tags[HISTORY_FROM] = trained[0].info.run_id
    return _open_run(store, result.params, code, tags)


def _open_run(store: Store, params: Params, code: Code, tags: Mapping[str, str]) -> MlflowRun:
    return store.create_run(run_name(params), tags, _recipe(params), code)


def _recipe(params: Params) -> dict[str, str]:
    return flat_params(params, "data", "model", "train")


def _rename(store: Store, run: MlflowRun, params: Params, tags: Mapping[str, str]) -> None:
    """Call the run as the experiment that completes it; training may have been an earlier one's."""
    completes = {name: tags[name] for name in ("digest.params", *EXPERIMENT_TAGS) if name in tags}
    if EXPERIMENT_TAGS.keys() <= completes.keys() and not completes.items() <= run.data.tags.items():
        store.client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in completes.items()])
        store.client.update_run(run.info.run_id, name=run_name(params))


def _close_superseded(store: Store, result: Result) -> None:
    """No run of this training is RUNNING any more once it is recorded: what is left was cut short, or is a twin."""
    for run in store.runs(TRAINING, result.training_digest):
        if RESULT not in run.data.tags and run.info.status != "KILLED":  # once: a second time would move its end
            store.client.set_tag(run.info.run_id, _DESCRIPTION, "Another run holds this training, whole.")
            store.client.set_terminated(run.info.run_id, "KILLED")


def _complete(store: Store, run: MlflowRun, result: Result) -> None:
    run_id = run.info.run_id
    store.client.set_tag(run_id, COMPLETING, result.result_digest)
    _log_points(store.client, run_id, _missing(store.client, run_id, history_points(result.history)))
    known = run.data.params
    params = flat_params(result.params, "kernel_check", "evaluate", "export")
    new = [Param(key, value) for key, value in params.items() if key not in known]
    store.client.log_batch(run_id, params=new)
    store.client.log_inputs(run_id, _datasets(result.params))
    _log_artifacts(store.client, run_id)
    store.client.set_tag(run_id, "digest.weights", result.training["weights_sha256"])
    if LOCK_FILE.is_file():
        store.client.set_tag(run_id, "digest.dvc_lock", digest(LOCK_FILE.read_bytes()))
    model = _model(store, run_id, result)
    now = time.time_ns() // 1_000_000
    figures = best_figures(result.history, result.training["chosen_epoch"]) | final_figures(
        result.evaluation, result.export
    )
    metrics = [Metric(key, value, now, 0, model_id=model.model_id) for key, value in figures.items()]
    sent = run.data.metrics
    store.client.log_batch(run_id, metrics=[metric for metric in metrics if metric.key not in sent])


def _log_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    for start in range(0, len(points), _POINTS_A_CALL):
        part = points[start : start + _POINTS_A_CALL]
        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in part]
        client.log_batch(run_id, metrics=metrics)


def _missing(client: MlflowClient, run_id: str, points: Sequence[Point]) -> list[Point]:
    there = _points_there(client, run_id, {point.key for point in points})
    return [point for point in points if (point.key, point.step) not in there]


def _points_there(client: MlflowClient, run_id: str, keys: Iterable[str]) -> set[tuple[str, int]]:
    return {(key, metric.step) for key in keys for metric in client.get_metric_history(run_id, key)}


def _datasets(params: Params) -> list[DatasetInput]:
    """The splits, each with a digest of the files and of what divides them."""
    sizes = {
        "training": 60_000 - params.data.validation_size,
        "validation": params.data.validation_size,
        "test": 10_000,
    }
    division = "" if not params.data.validation_size else f"-{params.data.validation_size}-{params.data.split_seed}"
    return [
        DatasetInput(
            Dataset(
                name="FashionMNIST",
                digest=f"{context[:5]}-{data_digest()[:12]}{division if context != 'test' else ''}",
                source_type="http",
                source='{"url": "https://github.com/zalandoresearch/fashion-mnist"}',
                profile=f'{{"num_rows": {size}}}',
            ),
            [InputTag("mlflow.data.context", context)],
        )
        for context, size in sizes.items()
        if size
    ]


def _log_artifacts(client: MlflowClient, run_id: str) -> None:
    for path in (PARAMS_FILE, PIPELINE_FILE, LOCK_FILE):
        if path.is_file():
            client.log_artifact(run_id, str(path), "pipeline")
    for folder in ("metrics", "plots"):
        for path in sorted(Path(folder).glob("[!.]*")):
            if path != REGISTRATION:
                client.log_artifact(run_id, str(path), folder)
    client.log_artifact(run_id, str(PROGRAM), "models")


def _log_card(client: MlflowClient, run: MlflowRun, version: ModelVersion, decision: Decision, result: Result) -> None:
    """Describe the run in short, and give it the whole model card."""
    run_id = run.info.run_id
    client.set_tag(run_id, _DESCRIPTION, _summary(result))
    card = completed(result.card, _facts(run, version, decision, result))
    client.log_text(run_id, card, CARD.as_posix())
    client.log_text(run_id, page(card, CARD.parent), CARD_PAGE.as_posix())


def _summary(result: Result) -> str:
    return summary(result.params, result.history, result.training, result.evaluation)


def _facts(run: MlflowRun, version: ModelVersion, decision: Decision, result: Result) -> dict[str, str]:
    """What the record adds to the model card."""
    run_id, tags, model = run.info.run_id, run.data.tags, f"models:/{version.name}/{version.version}"
    earlier = "" if version.run_id == run_id else f", registered by run `{version.run_id}` with the same weights"
    changes = f", with the changes in `{DIFF}`" if tags.get("git.dirty") == "true" else ""
    parity = ", ".join(f"{name} {difference:.1e}" for name, difference in result.export["parity"].items())
    facts = {
        "MLflow run": f"{run.info.run_name}, `{run_id}`",
        "model version": f"`{model}`{earlier}",
        "decision when registered": f"{decision.alias}: {decision.reason}",
        "exported models": f"largest difference of a logit from PyTorch's on the test images: {parity}",
        "commit": f"`{tags['mlflow.source.git.commit']}`{changes}" if "mlflow.source.git.commit" in tags else "",
        "machine": tags.get("machine", ""),
        "packages": tags.get("versions", ""),
        "to repeat it": f"`python -m lenet5.reproduce {run_id}`",
        "to serve it": f"`mlflow models serve -m {model} --env-manager local`",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _model(store: Store, run_id: str, result: Result) -> LoggedModel:
    """The ONNX model of the run, logged once."""
    logged = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    # A process that was killed while it logged the model leaves one without its files.
    known = [model for model in logged if model.status == LoggedModelStatus.READY]
    if known:
        return known[0]
    import onnx

    mlflow.set_tracking_uri(store.uri)
    with mlflow.start_run(run_id=run_id):
        info = mlflow.onnx.log_model(
            onnx.load(ONNX),
            name="onnx",
            tags={"weights_sha256": result.training["weights_sha256"]},
            **_onnx_facts(),
        )
    return store.client.get_logged_model(info.model_id)


def _onnx_facts() -> dict[str, Any]:
    """What MLflow keeps beside the ONNX file: what goes in and out, and what runs it."""
    image = (1, IMAGE_SIZE, IMAGE_SIZE)
    return {
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *image), name="images")]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(CLASSES)), name="logits")]),
        ),
        "input_example": {"images": np.zeros((2, *image), np.float32)},
        "pip_requirements": [f"{name}=={installed(name)}" for name in ("onnx", "onnxruntime", "numpy", "mlflow")],
        "onnx_execution_providers": ["CPUExecutionProvider"],
        "save_as_external_data": False,
    }


def _version(store: Store, run: MlflowRun, result: Result) -> ModelVersion:
    """The version of the registered model that holds these weights, created when there is none."""
    name = result.params.register_.model_name
    known = [
        version
        for version in store.client.search_model_versions(f"name = '{name}'")
        if version.tags.get("weights_sha256") == result.training["weights_sha256"]
    ]
    if known:
        return known[0]
    if not store.client.search_registered_models(f"name = '{name}'"):
        store.client.create_registered_model(name, description=_MODEL)
    model = _model(store, run.info.run_id, result)
    return store.client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=run.info.run_id,
        model_id=model.model_id,
        tags={
            "test_accuracy": f"{result.evaluation['test']['accuracy']:.4f}",
            "accuracy_gap": f"{result.evaluation['gap']['accuracy']:.4f}",
            "onnx_difference": f"{result.export['parity']['onnx']:.2e}",
            "weights_sha256": result.training["weights_sha256"],
        },
        description=_summary(result),
    )


def _decide(store: Store, version: ModelVersion, result: Result) -> Decision:
    """Decide about the version's alias, once, and note the evidence on it."""
    noted = Decision(**json.loads(version.tags["decision"])) if "decision" in version.tags else None
    if noted and "decision.alias" in version.tags:
        return noted
    decision = _decision(store, version, noted, result)
    evidence = {name: value for name, value in asdict(decision).items() if value is not None}
    # Before the alias: who is killed after it must not find the version compared with itself.
    store.client.set_model_version_tag(version.name, version.version, "decision", json.dumps(evidence))
    if decision.alias != "rejected":
        store.client.set_registered_model_alias(version.name, decision.alias, version.version)
    description = (
        f"{decision.alias.capitalize()}: {decision.reason}.\n\n{_summary(result)}\n"
        f"The whole model card is `{CARD_PAGE.as_posix()}` among the artifacts of the source run."
    )
    store.client.update_model_version(version.name, version.version, description)
    # The alias last: a version without this tag has not been decided about, whatever else it carries.
    for name in sorted(evidence, key="alias".__eq__):
        store.client.set_model_version_tag(version.name, version.version, f"decision.{name}", str(evidence[name]))
    return decision


def _decision(store: Store, version: ModelVersion, noted: Decision | None, result: Result) -> Decision:
    """Compare with the champion; ``noted`` is what a process decided that was killed while it carried it out."""
    candidate = read_predictions(PREDICTIONS)
    while True:
        champion = _champion(store, version.name)
        if noted and _version_number(champion) == _version_number(version):
            return noted
        decision = _compare(store, candidate, champion, result)
        # Another machine may have decided in the meantime; within this workspace the lock prevents it.
        if _version_number(_champion(store, version.name)) == _version_number(champion):
            return decision


def _compare(store: Store, candidate: pd.DataFrame, champion: ModelVersion | None, result: Result) -> Decision:
    limits, gap = result.params.register_, result.evaluation["gap"]["accuracy"]
    alone = decide(candidate, gap, None, limits)
    if champion is None or alone.alias == "rejected":
        return alone
    try:
        return decide(candidate, gap, _predictions(store, champion), limits)
    except ValueError as error:  # without evidence nobody is replaced
        reason = f"not compared with champion version {champion.version}: {error}"
        return Decision("challenger", reason, alone.accuracy)


def _champion(store: Store, name: str) -> ModelVersion | None:
    aliases: dict[str, str] = store.client.get_registered_model(name).aliases
    return store.client.get_model_version(name, aliases["champion"]) if "champion" in aliases else None


def _version_number(version: ModelVersion | None) -> str | None:
    return str(version.version) if version else None


def _predictions(store: Store, champion: ModelVersion) -> pd.DataFrame:
    """The champion's per-image predictions. Raises ValueError where they are gone."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.client.download_artifacts(str(champion.run_id), PREDICTIONS.as_posix(), folder)
            return read_predictions(Path(path))
        except (MlflowException, OSError, UserError):
            raise ValueError(
                f"its {PREDICTIONS} are gone from run {champion.run_id}; to replace it, move the alias champion "
                f"to a version of your choice in the MLflow UI"
            ) from None


def _advice(message: str) -> str:
    """What to do about MLflow's ``message``."""
    known = {
        ("Max retries exceeded", "Connection refused", "Failed to connect", "timed out"): (
            "cannot be reached; start that server, or unset MLFLOW_TRACKING_URI to use mlflow.db"
        ),
        ("error code 401", "error code 403"): (
            "refuses the credentials; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ..._TOKEN"
        ),
        ("out-of-date database schema", "Can't locate revision"): (
            "the store was written by another MLflow version; `mlflow db upgrade` brings an older one up to date, "
            "for a newer one install the MLflow that made it"
        ),
        ("Could not find a registered artifact repository", "unsupported URI", "Could not find a registered"): (
            "no such kind of store; MLFLOW_TRACKING_URI must begin with http://, https://, sqlite:/// or postgresql://"
        ),
    }
    for signs, advice in known.items():
        if any(sign in message for sign in signs):
            return advice
    return message.partition("\n")[0]


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    path = root / "mlruns/.lock"
    path.parent.mkdir(exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=_LOCK_SECONDS):
            yield
    except filelock.Timeout:
        raise UserError(f"{path}: held by another process for {_LOCK_SECONDS} s; end that process") from None
