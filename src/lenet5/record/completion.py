"""Completing the run of a result: found by what training produced, and given whatever it lacks."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion

from lenet5.data.fashion_mnist import data_digest
from lenet5.files import digest
from lenet5.outs import CARD, CARD_PAGE, HEADLINE, PROGRAM, REGISTRATION
from lenet5.params import TRAINING_IMAGES, Params, flat_params
from lenet5.record.champions import aliases_of
from lenet5.record.lineage import CODE_TAGS, EXPERIMENT_TAGS, Code
from lenet5.record.live_run import log_points, missing_points, open_run, trained_params
from lenet5.record.promotion import Decision
from lenet5.record.result import Result, history_points, model_figures, readable, run_name
from lenet5.record.store import COMPLETING, DESCRIPTION, DIFF, HISTORY_FROM, RESULT, TRAINING, Store, user_errors
from lenet5.record.verification import lacking
from lenet5.record.versions import judged, onnx_of, summary_of
from lenet5.results.model_card import TEST_IMAGES, completed, page
from lenet5.workspace import LOCK_FILE, PARAMS_FILE, PIPELINE_FILE


def record(store: Store, result: Result, tags: Mapping[str, str], code: Code) -> dict[str, Any]:
    """Bring the record of ``result`` to completeness; what is there already stays as it is.

    Returns what became of it: run, model version, the alias it carries now, the decision when it was registered.
    """
    with user_errors(store.uri), store.exclusive():
        run = _find_or_create(store, result, tags, code)
        complete = RESULT in run.data.tags and not lacking(store.client, run)
        if not complete:
            _complete(store, run, result)
        decision, version = judged(store, run, result)
        if not complete:
            _log_card(store.client, run, version, decision, result)
            if run.info.status != "FINISHED":  # a second time would move its end
                store.client.set_terminated(run.info.run_id, "FINISHED")
            store.client.set_tag(run.info.run_id, RESULT, result.result_digest)
            store.client.delete_tag(run.info.run_id, COMPLETING)
        _close_superseded(store, result)
        return {
            "run_id": run.info.run_id,
            "run_name": run.info.run_name,
            "model": result.params.register_.model_name,
            "version": int(version.version) if version else None,
            "alias": ", ".join(aliases_of(store.client, version)) or None if version else None,
            **asdict(decision),
        }


def _find_or_create(store: Store, result: Result, tags: Mapping[str, str], code: Code) -> MlflowRun:
    finished = store.runs(RESULT, result.result_digest)
    if finished:
        return finished[0]
    deleted = store.runs(RESULT, result.result_digest, ViewType.DELETED_ONLY)
    if deleted:  # a version may name it, and it has the history that the outs do not hold
        store.client.restore_run(deleted[0].info.run_id)
        return store.client.get_run(deleted[0].info.run_id)
    trained = store.runs(TRAINING, result.training_digest)
    # One that `register` was killed over holds figures and files of its own result, never to be mixed with others.
    fit = [
        run
        for run in trained
        if RESULT not in run.data.tags and run.data.tags.get(COMPLETING, result.result_digest) == result.result_digest
    ]
    if fit:
        return _taken_up(store, fit[0], result.params, tags, code)
    tags = {**tags, TRAINING: result.training_digest}
    if trained:  # only evaluate or export changed: a finished run is never rewritten
        tags[HISTORY_FROM] = trained[0].info.run_id
    return open_run(store, result.params, code, tags)


def _taken_up(store: Store, run: MlflowRun, params: Params, tags: Mapping[str, str], code: Code) -> MlflowRun:
    """The run with the code and the experiment that complete it, to which all outs belong.

    Training may have been an earlier experiment's, or of another commit.
    """
    run_id = run.info.run_id
    store.describe(run, trained_params(params), code)
    new = [RunTag(name, tags[name]) for name in (*CODE_TAGS, *EXPERIMENT_TAGS) if name in tags]
    store.client.log_batch(run_id, tags=new)
    if EXPERIMENT_TAGS.keys() <= tags.keys():
        store.client.update_run(run_id, name=run_name(params))
    return store.client.get_run(run_id)


def _close_superseded(store: Store, result: Result) -> None:
    """No run of this training is RUNNING any more once it is recorded: what is left was cut short, or is a twin."""
    for run in store.runs(TRAINING, result.training_digest):
        if RESULT not in run.data.tags and run.info.status != "KILLED":  # once: a second time would move its end
            store.client.set_tag(run.info.run_id, DESCRIPTION, "Another run holds this training, whole.")
            store.client.set_terminated(run.info.run_id, "KILLED")


def _complete(store: Store, run: MlflowRun, result: Result) -> None:
    run_id = run.info.run_id
    store.client.set_tag(run_id, COMPLETING, result.result_digest)
    log_points(store.client, run_id, missing_points(store.client, run_id, history_points(result.history)))
    known = run.data.params
    params = flat_params(result.params, "kernel_check", "evaluate", "export")
    new = [Param(key, value) for key, value in params.items() if key not in known]
    store.client.log_batch(run_id, params=new)
    store.client.log_inputs(run_id, _datasets(result.params))
    _log_artifacts(store.client, run_id)
    store.client.set_tag(run_id, "digest.weights", result.training["weights_sha256"])
    if LOCK_FILE.is_file():
        store.client.set_tag(run_id, "digest.dvc_lock", digest(LOCK_FILE.read_bytes()))
    model = onnx_of(store, run_id, result)
    now = time.time_ns() // 1_000_000
    figures = readable(model_figures(result.training, result.evaluation, result.export))
    metrics = [Metric(key, value, now, 0, model_id=model.model_id) for key, value in figures.items()]
    sent = run.data.metrics
    store.client.log_batch(run_id, metrics=[metric for metric in metrics if metric.key not in sent])


def _datasets(params: Params) -> list[DatasetInput]:
    """The splits, each with a digest of the files and of what divides them."""
    sizes = {
        "training": TRAINING_IMAGES - params.data.validation_size,
        "validation": params.data.validation_size,
        "test": TEST_IMAGES,
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
            if path not in (REGISTRATION, HEADLINE):  # they know of the run, and are of an earlier one
                client.log_artifact(run_id, str(path), folder)
    client.log_artifact(run_id, str(PROGRAM), "models")


def _log_card(
    client: MlflowClient, run: MlflowRun, version: ModelVersion | None, decision: Decision, result: Result
) -> None:
    """Describe the run in short, and give it the whole model card."""
    run_id = run.info.run_id
    outside = "" if version else f"When registered it got no model version: {decision.reason}.\n\n"
    client.set_tag(run_id, DESCRIPTION, outside + summary_of(result))
    card = completed(result.card, _facts(run, version, decision, result))
    client.log_text(run_id, card, CARD.as_posix())
    client.log_text(run_id, page(card, CARD.parent), CARD_PAGE.as_posix())


def _facts(run: MlflowRun, version: ModelVersion | None, decision: Decision, result: Result) -> dict[str, str]:
    """What the record adds to the model card."""
    run_id, tags, model = run.info.run_id, run.data.tags, ""
    if version:
        model = f"models:/{version.name}/{version.version}"
    earlier = (
        f", registered by run `{version.run_id}` with the same weights" if version and version.run_id != run_id else ""
    )
    changes = f", with the changes in `{DIFF}`" if tags.get("git.dirty") == "true" else ""
    commit = tags.get("mlflow.source.git.commit")
    parity = ", ".join(f"{name} {difference:.1e}" for name, difference in result.export["parity"].items())
    facts = {
        "MLflow run": f"{run.info.run_name}, `{run_id}`",
        "begun": f"{datetime.fromtimestamp(run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M} UTC",
        "model version": f"`{model}`{earlier}" if model else "",
        "decision when registered": f"{decision.became}: {decision.reason}",
        "exported models": f"largest difference of a logit from PyTorch's on the test images: {parity}",
        "commit": f"`{commit}`{changes}" if commit else "none: recorded without git, it cannot be repeated",
        "machine": tags.get("machine", ""),
        "packages": tags.get("versions", ""),
        "to repeat it": f"`lenet5 reproduce {run_id}`" if commit else "",
        "to serve it": f"`mlflow models serve -m {model} --env-manager local`" if model else "",
    }
    return {name: fact for name, fact in facts.items() if fact}
