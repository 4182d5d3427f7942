"""Versions of the registered model, and the decision which of them is champion."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion

from lenet5.errors import UserError
from lenet5.outs import CARD_PAGE, ONNX, PREDICTIONS
from lenet5.record.champions import aliases_of, champion_of, crown, now
from lenet5.record.evidence import (
    MLMODEL,
    damage_told,
    has_files,
    is_whole,
    log_evidence,
    log_files,
    model_id_of,
    models_of,
    read_evidence,
    run_holds,
)
from lenet5.record.onnx_model import log_model, pack_model
from lenet5.record.promotion import CHALLENGER, CHAMPION, REJECTED, Decision, decide
from lenet5.record.result import Result, read_predictions
from lenet5.record.store import Store
from lenet5.results.model_card import summary

_ABOUT = (
    "LeNet-5 on FashionMNIST. In, as `images`: pictures as base64, or 28 x 28 grey levels of a light thing on black, "
    "from 0 to 1 or whole numbers up to 255. Out, for each: its class, the probability of every class, and the logits. "
    "The alias champion is the best version so far, challenger the latest that did not prove better. Each version's "
    "description says how good it is, and what it became when it was registered; the tags champion, with a time, say "
    "who became champion then, and why."
)
_DECISION, _DECIDED = "decision", "decided"
"""Of a version: the evidence as JSON, before it is acted upon; and when all of that was done."""


def onnx_of(store: Store, run_id: str, result: Result) -> LoggedModel:
    """The ONNX model of the run, logged once."""
    if known := models_of(store.client, store.experiment_id, run_id):
        return known[0]
    tags = {"weights_sha256": result.training["weights_sha256"]}
    return store.client.get_logged_model(log_model(store.uri, run_id, ONNX, tags))


def judged(store: Store, run: MlflowRun, result: Result) -> tuple[Decision, ModelVersion | None]:
    """What the result's weights became, and the version that holds them: none for what is outside the limits.

    Version and decision are made once. Where the run or the model of a version is gone for good, a new version takes
    its place, aliases and decision with it.
    """
    held = versions_with(store.client, result.params.register_.model_name, result.training["weights_sha256"])
    version = next((one for one in reversed(held) if is_whole(store.client, one)), None)
    if not held:
        alone = _compare(store, read_predictions(PREDICTIONS), None, result)
        if alone.became == REJECTED:
            return alone, None
    version = version or _create(store, run, result, held[-1] if held else None)
    _succeed(store.client, held, version)
    bring_back_files(store.client, version)
    log_evidence(store.client, model_id_of(version), run, result)
    return decide_once(store, version, result), version


def versions_with(client: MlflowClient, name: str, weights: str | None) -> list[ModelVersion]:
    """The versions of ``name`` that hold the weights with this SHA-256, oldest first."""
    found = client.search_model_versions(f"name = '{name}'")
    same = [one for one in found if one.tags.get("weights_sha256") == weights]
    return sorted(same, key=lambda one: int(one.version))


def _create(store: Store, run: MlflowRun, result: Result, lost: ModelVersion | None) -> ModelVersion:
    """A version for the run's model; with the decision about ``lost``, in whose place it comes."""
    name = result.params.register_.model_name
    ensure_model(store.client, name)
    model = onnx_of(store, run.info.run_id, result)
    facts = {
        "test_accuracy": f"{result.evaluation['test']['accuracy']:.4f}",
        "accuracy_gap": f"{result.evaluation['gap']['accuracy']:.4f}",
        "weights_sha256": result.training["weights_sha256"],
    }
    return store.client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=run.info.run_id,
        model_id=model.model_id,
        tags=facts | (_carried(lost) if lost else {}),
        description=lost.description if lost else summary_of(result),
    )


def ensure_model(client: MlflowClient, name: str) -> None:
    """Make the registered model where there is none."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=_ABOUT)


def _carried(lost: ModelVersion) -> dict[str, str]:
    """The tags with the decision about ``lost``, if it was carried out."""
    noted = _noted(lost)
    if noted is None or not _is_decided(lost):
        return {}
    return {_DECISION: _evidence(noted), _DECIDED: lost.tags.get(_DECIDED, now())}


def _succeed(client: MlflowClient, held: Sequence[ModelVersion], version: ModelVersion) -> None:
    """Hand what the lost ones among ``held`` carry to ``version``; again where a process was killed meanwhile."""
    for lost in held:
        if lost.version == version.version or is_whole(client, lost):
            continue
        said = f"Its run or its model was deleted; version {version.version} holds the same weights."
        for alias in aliases_of(client, lost):
            if alias == CHAMPION:
                crown(client, lost.name, str(version.version), f"in place of version {lost.version}: {said}")
            else:
                client.set_registered_model_alias(lost.name, alias, version.version)
        if said not in (lost.description or ""):
            client.update_model_version(lost.name, lost.version, f"{said}\n\n{lost.description or ''}")


def bring_back_files(client: MlflowClient, version: ModelVersion) -> None:
    """Give the version's model its files again where they are gone, deleted by hand say."""
    if has_files(client, version):
        return
    with tempfile.TemporaryDirectory() as folder:
        log_files(client, model_id_of(version), pack_model(ONNX, Path(folder, "model")), MLMODEL)


def decide_once(store: Store, version: ModelVersion, result: Result) -> Decision:
    """Decide about the version's alias, once, and note the evidence on it."""
    noted = _noted(version)
    if noted and _is_decided(version):
        return noted
    decision = _decision(store, version, noted, result)
    # Before the alias: who is killed after it must not find the version compared with itself.
    store.client.set_model_version_tag(version.name, version.version, _DECISION, _evidence(decision))
    if decision.became == CHAMPION:
        crown(store.client, version.name, str(version.version), decision.reason)
    elif decision.became == CHALLENGER:
        store.client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    description = (
        f"Became {decision.became} when registered: {decision.reason}.\n\n{summary_of(result)}\n"
        f"The whole model card is `{CARD_PAGE.as_posix()}` among the artifacts of the source run."
    )
    store.client.update_model_version(version.name, version.version, description)
    # The last word: a version without this tag has not been decided about, whatever else it carries.
    store.client.set_model_version_tag(version.name, version.version, _DECIDED, now())
    return decision


def _is_decided(version: ModelVersion) -> bool:
    return bool(version.tags.keys() & {_DECIDED, "decision.alias"})  # the latter of earlier releases


def _evidence(decision: Decision) -> str:
    return json.dumps({name: value for name, value in asdict(decision).items() if value is not None})


def _noted(version: ModelVersion) -> Decision | None:
    """The decision on the version's tag, if there is one."""
    if _DECISION not in version.tags:
        return None
    evidence = json.loads(version.tags[_DECISION])
    if "alias" in evidence:  # as earlier releases wrote it
        evidence["became"] = evidence.pop("alias")
    return Decision(**evidence)


def _decision(store: Store, version: ModelVersion, noted: Decision | None, result: Result) -> Decision:
    """Compare with the champion; ``noted`` is what a process decided that was killed while it carried it out."""
    candidate = read_predictions(PREDICTIONS)
    while True:
        champion = champion_of(store.client, version.name)
        if noted and _version_number(champion) == _version_number(version):
            return noted
        decision = _compare(store, candidate, champion, result)
        # Another machine may have decided in the meantime; within this workspace the lock prevents it.
        if _version_number(champion_of(store.client, version.name)) == _version_number(champion):
            return decision


def _compare(store: Store, candidate: pd.DataFrame, champion: ModelVersion | None, result: Result) -> Decision:
    limits, gap = result.params.register_, result.evaluation["gap"]["accuracy"]
    alone = decide(candidate, gap, None, limits)
    if champion is None or alone.became == REJECTED:
        return alone
    try:
        return decide(candidate, gap, _predictions(store, champion), limits)
    except ValueError as error:  # without evidence nobody is replaced
        reason = f"not compared with champion version {champion.version}: {error}"
        return Decision(CHALLENGER, reason, alone.accuracy)


def _version_number(version: ModelVersion | None) -> str | None:
    return str(version.version) if version else None


def _predictions(store: Store, champion: ModelVersion) -> pd.DataFrame:
    """The champion's per-image predictions. Raises ValueError where they are gone or damaged.

    A store that cannot be asked raises what it raises: the decision is made for good, and is to be made another time.
    """
    run_id, then = str(champion.run_id), "to replace it, `lenet5 champion` moves the alias to a version of your choice"
    with tempfile.TemporaryDirectory() as folder:
        try:
            kept = read_evidence(store.client, store.uri, champion, Path(folder))
            if kept:
                return kept.predictions
            if not run_holds(store.client, run_id, PREDICTIONS):
                raise ValueError(f"its {PREDICTIONS} are gone with its model and run {run_id}; {then}")
            downloaded = store.client.download_artifacts(run_id, PREDICTIONS.as_posix(), folder)
            with damage_told(f"run {run_id}"):
                return read_predictions(Path(downloaded))
        except UserError as error:
            raise ValueError(f"{error}; {then}") from None


def summary_of(result: Result) -> str:
    """The model card in short."""
    return summary(result.params, result.history, result.training, result.evaluation)
