"""Stage register: make the MLflow run of this result complete, and its model a version. About 15 s.

Running it again changes nothing. `make record` runs it by itself, to rebuild a lost record from the outs.
"""

from lenet5 import tracking
from lenet5.files import write_json
from lenet5.lineage import lineage_tags, read_code
from lenet5.outs import REGISTRATION
from lenet5.params import Params
from lenet5.record import read_result
from lenet5.stage import run_stage


def main(params: Params) -> None:
    """Record what the earlier stages made, and say what became of the model."""
    code = read_code()
    entry = tracking.record(tracking.connect(params), read_result(params), lineage_tags(code), code)
    write_json(REGISTRATION, entry)
    print(f"MLflow run {entry['run_name']} ({entry['run_id']})")
    print(f"{entry['model']} version {entry['version']}: {entry['alias']}, {entry['reason']}")


if __name__ == "__main__":
    run_stage("register", main)
