"""Stage register: make the MLflow run of this result complete, and its model a version. About 15 s.

Running it again changes nothing. `make record` runs it by itself, to rebuild a lost record from the outs.
"""

from beside import run_stage

from collections.abc import Mapping
from typing import Any

from lenet5.files import write_json
from lenet5.outs import HEADLINE, REGISTRATION
from lenet5.params import Params
from lenet5.record.attempt import attempts_at, cut_short, forget
from lenet5.record.completion import record
from lenet5.record.lineage import lineage_tags, read_code
from lenet5.record.live_run import catch_up, close_cut_short
from lenet5.record.locked import refuse_other_params
from lenet5.record.promotion import CHAMPION
from lenet5.record.result import headline, read_result
from lenet5.record.store import connect
from lenet5.record.summary import summary
from lenet5.stage import called_by_dvc
from lenet5.workspace import ATTEMPTS, PARAMS_FILE, main_workspace


def main(params: Params) -> None:
    """Record what the earlier stages made, and say what became of the model."""
    # `make record` has DVC look at no other stage. Whoever runs the stages by hand leaves dvc.lock behind.
    if called_by_dvc("register"):
        refuse_other_params(params)
    code, result, folder = read_code(), read_result(params), main_workspace() / ATTEMPTS
    attempts = attempts_at(folder, result.training_digest)
    store = connect(params)
    if attempts and catch_up(store, attempts, result.training_digest):
        forget(folder, result.training_digest)
    close_cut_short(store, [one.name for one in cut_short(folder)])
    entry = record(store, result, lineage_tags(code), code)
    page = store.page_of(entry["run_id"])
    said = summary(result.training, result.evaluation, entry, page)
    write_json(REGISTRATION, {**entry, "summary": said})
    write_json(HEADLINE, headline(result.training, result.evaluation, entry["became"] == CHAMPION))
    print(f"MLflow run {entry['run_name']}")
    print(verdict(entry))
    print(said)


def verdict(entry: Mapping[str, Any]) -> str:
    """What became of the model, and what it is now, in a line."""
    became, reason = entry["became"], entry["reason"]
    if entry["version"] is None:
        return f"{entry['model']}: no version, {reason}; wider limits in {PARAMS_FILE} and `dvc repro` make one"
    version = f"{entry['model']} version {entry['version']}"
    if entry["alias"] == became:
        return f"{version}: {became}, {reason}"
    return f"{version}: became {became} when registered ({reason}); its alias now: {entry['alias'] or 'none'}"


if __name__ == "__main__":
    run_stage("register", main)
