"""Where MLflow's UI shows the experiment of the params in this folder; `make ui` asks before it starts the UI."""

from lenet5.errors import UserError, one_line_errors
from lenet5.params import Params, load_params
from lenet5.record.addresses import store_uri
from lenet5.record.experiment_page import curves_page
from lenet5.record.store import experiment_name, reader, user_errors
from lenet5.workspace import PARAMS_FILE


def page_of_experiment(params: Params) -> str:
    """The address of the experiment's curves. Raises UserError where there is no experiment yet."""
    uri, name = store_uri(), experiment_name(params)
    client = reader(uri)
    with user_errors(uri, then=""):
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise UserError(f"no MLflow experiment {name} yet; `dvc repro` makes it")
    return curves_page(uri, experiment.experiment_id)


if __name__ == "__main__":
    with one_line_errors("ui"):
        print(page_of_experiment(load_params(PARAMS_FILE)), flush=True)
