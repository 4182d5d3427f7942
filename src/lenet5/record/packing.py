"""A result as one file, for another workspace or server: its run, its artifacts, its model, where it comes from."""

import json
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelStatus, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.models import Model

from lenet5.errors import PERSON_CAN_MEND, UserError
from lenet5.files import atomic_path
from lenet5.params import Params
from lenet5.record.addresses import store_uri
from lenet5.record.evidence import download_from_model, is_whole, models_of
from lenet5.record.live_run import log_points
from lenet5.record.reading import find_run
from lenet5.record.result import Point
from lenet5.record.store import RESULT, TRAINING, Store, connect, reader, user_errors
from lenet5.record.verification import TAKING, losses
from lenet5.record.versions import ensure_model, versions_with

_ABOUT, _RUN, _MODEL, _FORMAT = "result.json", "run", "model", 1
_AGAIN = "; the same command takes it up again"
_LAST = (RESULT, TRAINING)
"""The tags by which others take a run for whole."""
_FACTS = ("weights_sha256", "test_accuracy", "accuracy_gap", "decision", "decided")
"""The tags of a version that hold wherever it is."""
_OF_DATASET = ("name", "digest", "source_type", "source", "profile")


def pack(reference: str, params: Params, file: Path) -> str:
    """Write a complete result, found as ``find_run`` does, to ``file``; gives the run's name.

    Raises UserError where there is no such result, its files or its model are gone, or ``file`` is no .zip.
    """
    if file.is_dir() or file.suffix.lower() != ".zip":
        raise UserError(f"{file}: no result is written there; give a file that ends in .zip")
    uri = store_uri()
    client = reader(uri)
    with user_errors(uri, then=f" ({reference}); nothing was written"), tempfile.TemporaryDirectory() as name:
        run, folder = find_run(client, reference, params), Path(name)
        if lost := next(losses(client, run), None):
            raise UserError(f"run {run.info.run_name}: {lost}")
        model = str(models_of(client, run.info.experiment_id, run.info.run_id)[0].model_id)
        client.download_artifacts(run.info.run_id, "", str(_made(folder / _RUN)))
        download_from_model(client, uri, model, "", folder).rename(folder / _MODEL)
        (folder / _ABOUT).write_text(json.dumps(_about(client, run), indent=1), encoding="utf-8")
        with atomic_path(file) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(folder.rglob("*")):
                packed.write(path, path.relative_to(folder))
        return str(run.info.run_name)


def take(file: Path, params: Params) -> str:
    """Add the result that ``pack`` wrote to ``file`` to this record, unless it is there; says what became of it.

    Its version carries no alias here. Raises UserError where ``file`` is not such a file, or is damaged.
    """
    with tempfile.TemporaryDirectory() as name:
        about = _unpack(file, Path(name))
        store = connect(params, _AGAIN)
        with user_errors(store.uri, _AGAIN), store.exclusive():
            for begun in store.runs(TAKING, about["tags"][RESULT]):  # a process was killed over it
                if RESULT not in begun.data.tags:
                    _delete(store.client, begun.info.run_id)
            here = store.runs(RESULT, about["tags"][RESULT])
            if here:
                return f"{about['name']} is here already: run {here[0].info.run_id}"
            return _add(store, params, about, Path(name))


def _about(client: MlflowClient, run: MlflowRun) -> dict[str, Any]:
    histories = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    # An evaluation made anew is a run of its own, and the version stays with the run before.
    ways = f"run_id = '{run.info.run_id}'", f"tags.weights_sha256 = '{run.data.tags.get('digest.weights')}'"
    versions = next(filter(None, map(client.search_model_versions, ways)), None)
    return {
        "format": _FORMAT,
        "name": run.info.run_name,
        "started": run.info.start_time,
        "ended": run.info.end_time,
        "tags": run.data.tags,
        "params": run.data.params,
        "points": [[point.key, point.value, point.step, point.timestamp] for point in histories],
        "datasets": [
            {"context": [tag.value for tag in entry.tags], **entry.dataset.to_dictionary()}
            for entry in (run.inputs.dataset_inputs if run.inputs else ())
        ],
        "version": {"description": versions[0].description, "tags": dict(versions[0].tags)} if versions else None,
    }


def _unpack(file: Path, folder: Path) -> dict[str, Any]:
    wrong = f"{file}: not a file that `lenet5 record pack` wrote, or damaged"
    try:
        with zipfile.ZipFile(file) as packed:
            packed.extractall(folder)  # names that lead out of it are made harmless there
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file" if not file.exists() else wrong) from None
    except OSError as error:  # a place that a wrong number says is read from, or a name that is none
        if error.errno in PERSON_CAN_MEND:
            raise
        raise UserError(wrong) from None
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError):
        raise UserError(wrong) from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise UserError(f"{wrong}; this release reads format {_FORMAT}")
    return about


def _delete(client: MlflowClient, run_id: str) -> None:
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        client.delete_model_version(version.name, version.version)
    client.delete_run(run_id)


def _add(store: Store, params: Params, about: dict[str, Any], folder: Path) -> str:
    client, result = store.client, about["tags"][RESULT]
    tags = {name: value for name, value in about["tags"].items() if name not in (*_LAST, "mlflow.runName")}
    run = client.create_run(store.experiment_id, about["started"], {TAKING: result}, run_name=about["name"])
    run_id = run.info.run_id
    client.log_batch(
        run_id, params=[Param(*one) for one in about["params"].items()], tags=[RunTag(*one) for one in tags.items()]
    )
    log_points(client, run_id, [Point(*one) for one in about["points"]])
    client.log_inputs(run_id, _datasets(about["datasets"]))
    client.log_artifacts(run_id, str(folder / _RUN))
    model_id = _add_model(store, run_id, folder / _MODEL)
    said = f"{about['name']} is run {run_id}"
    if about["version"]:
        said += f", {_add_version(client, params.register_.model_name, run_id, model_id, about['version'])}"
    client.set_terminated(run_id, "FINISHED", about["ended"])
    # The last word: from here on it is here.
    client.log_batch(run_id, tags=[RunTag(name, about["tags"][name]) for name in _LAST if name in about["tags"]])
    client.delete_tag(run_id, TAKING)
    return said


def _add_model(store: Store, run_id: str, folder: Path) -> str:
    model = store.client.create_logged_model(store.experiment_id, "onnx", source_run_id=run_id)
    model_id = str(model.model_id)
    described = Model.load(str(folder))
    described.model_id, described.run_id = model_id, run_id
    described.save(str(folder / "MLmodel"))
    store.client.log_model_artifacts(model_id, str(folder))
    store.client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def _add_version(client: MlflowClient, name: str, run_id: str, model_id: str, version: dict[str, Any]) -> str:
    ensure_model(client, name)
    tags = {key: value for key, value in version["tags"].items() if key in _FACTS}
    held = [one for one in versions_with(client, name, tags.get("weights_sha256")) if is_whole(client, one)]
    if held:
        return f"whose weights are version {held[0].version} of {name}"
    source = f"models:/{model_id}"
    made = client.create_model_version(
        name, source, run_id, tags, description=version["description"], model_id=model_id
    )
    return f"version {made.version} of {name}, without an alias; `lenet5 champion {made.version}` makes it champion"


def _datasets(entries: Sequence[dict[str, Any]]) -> list[DatasetInput]:
    return [
        DatasetInput(
            Dataset(**{name: entry[name] for name in _OF_DATASET}),
            [InputTag("mlflow.data.context", value) for value in entry["context"]],
        )
        for entry in entries
    ]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
