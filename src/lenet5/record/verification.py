"""Whether the record has all it needs: every complete result its files, every version its run and its model."""

from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from lenet5.findings import Finding
from lenet5.outs import CARD, EVALUATION, HISTORY, PREDICTIONS, PROGRAM
from lenet5.params import Params
from lenet5.record.addresses import store_uri
from lenet5.record.evidence import has_evidence, has_files, is_whole, models_of, run_holds
from lenet5.record.promotion import CHAMPION
from lenet5.record.store import DIFF, RESULT, TRAINING, every_run, experiment_name, reader, user_errors
from lenet5.workspace import PARAMS_FILE

TAKING = "taking"
"""The tag of a run that `record take` has not come to the end of: the result it is to be."""

_MENDS = "`make record` where its outs are brings it back"


def lacking(client: MlflowClient, run: MlflowRun) -> list[str]:
    """What `compare`, `reproduce`, `pack` and a champion's decision need of a complete run, and is not there."""
    run_id = run.info.run_id
    needed = [
        *(path.as_posix() for path in (EVALUATION, HISTORY, PREDICTIONS, PROGRAM, CARD)),
        f"pipeline/{PARAMS_FILE}",
    ]
    folders = {path.partition("/")[0] for path in needed}
    there = {item.path for folder in folders for item in client.list_artifacts(run_id, folder)}
    gone = [path for path in needed if path not in there]
    return gone if models_of(client, run.info.experiment_id, run_id) else [*gone, "its model"]


def losses(client: MlflowClient, run: MlflowRun) -> Iterator[str]:
    """What a complete run has lost of its files and its model, and what brings it back."""
    if gone := lacking(client, run):
        yield f"{', '.join(gone)} missing; {_MENDS}"
    if run.data.tags.get("git.dirty") == "true" and not run_holds(client, run.info.run_id, Path(DIFF)):
        yield f"{DIFF} missing, without which nobody can repeat it; only a copy of that file brings it back"


def verify(params: Params) -> Iterator[Finding]:
    """Look through the experiment and the registered model. Raises UserError where the store cannot be had."""
    uri = store_uri()
    client, name = reader(uri), experiment_name(params)
    with user_errors(uri, then=""):
        experiment = client.get_experiment_by_name(name)
        runs = every_run(client, experiment.experiment_id, "") if experiment else []
        problems = [finding for run in runs for finding in _look_at_run(client, run)]
        yield from problems
        versions = list(_look_at_versions(client, params.register_.model_name))
        yield from versions
        if not any(one.level == "problem" for one in (*problems, *versions)):
            complete = sum(RESULT in run.data.tags for run in runs)
            text = f"{name}: nothing is missing; complete results among its runs: {complete} of {len(runs)}"
            yield Finding("ok", "record", text)


def _look_at_run(client: MlflowClient, run: MlflowRun) -> Iterator[Finding]:
    called = f"{run.info.run_name} ({run.info.run_id})"
    if RESULT in run.data.tags:
        for lost in losses(client, run):
            yield Finding("problem", "run", f"{called}: {lost}")
    elif TAKING in run.data.tags:
        yield Finding("note", "run", f"{called}: taken in part; the same `lenet5 record take` takes it up again")
    elif TRAINING in run.data.tags and run.info.status != "KILLED":
        yield Finding("note", "run", f"{called}: trained, and not completed; `dvc repro` where its outs are does that")


def _look_at_versions(client: MlflowClient, name: str) -> Iterator[Finding]:
    if not client.search_registered_models(f"name = '{name}'"):
        yield Finding("note", "model", f"{name}: no version yet; a result within the limits of {PARAMS_FILE} makes one")
        return
    aliases = client.get_registered_model(name).aliases
    carried = {str(number) for number in aliases.values()}
    versions = [(one, is_whole(client, one)) for one in client.search_model_versions(f"name = '{name}'")]
    kept = {one.tags.get("weights_sha256") for one, whole in versions if whole}
    for version, whole in versions:
        called, level = f"{name} version {version.version}", "problem" if str(version.version) in carried else "note"
        if not whole and level == "note" and version.tags.get("weights_sha256") in kept:
            continue  # another version took its place
        if not whole:
            yield Finding(level, "model", f"{called}: its run or its model was deleted; {_MENDS}")
        elif not has_files(client, version):
            yield Finding(level, "model", f"{called}: its files are gone; {_MENDS}")
        elif not has_evidence(client, version):
            text = "lacks some of what it was judged by, as those of earlier releases: compared while its run is there"
            yield Finding("note", "model", f"{called}: {text}")
    if CHAMPION not in aliases:
        yield Finding("note", "model", f"{name}: nobody is champion; `lenet5 champion VERSION` makes one so")
