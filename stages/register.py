"""Stage register: make the MLflow run of this result complete, and its model a version. About 15 s.

Running it again changes nothing. `make record` runs it by itself, to rebuild a lost record from the outs.
"""

from lenet5 import tracking
from lenet5.attempt import attempt_at, forget
from lenet5.files import write_json
from lenet5.lineage import lineage_tags, read_code
from lenet5.outs import REGISTRATION
from lenet5.params import Params
from lenet5.record import read_result
from lenet5.stage import run_stage
from lenet5.workspace import ATTEMPTS, main_workspace


def main(params: Params) -> None:
    """Record what the earlier stages made, and say what became of the model."""
    code, result, attempts = read_code(), read_result(params), main_workspace() / ATTEMPTS
    attempt = attempt_at(attempts, result.training_digest)
    store = tracking.connect(params)
    if attempt and tracking.catch_up(store, attempt, result.training_digest):
        forget(attempts, result.training_digest)
    entry = tracking.record(store, result, lineage_tags(code), code)
    write_json(REGISTRATION, entry)
    print(f"MLflow run {entry['run_name']} ({entry['run_id']})")
    print(f"{entry['model']} version {entry['version']}: {entry['alias']}, {entry['reason']}")


if __name__ == "__main__":
    run_stage("register", main)
