"""The connection to MLflow: which store and which experiment, its lock, and what a person can mend about it."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
from mlflow import MlflowClient
from mlflow.entities import Param, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from lenet5.errors import UserError
from lenet5.files import folder_name
from lenet5.params import Params
from lenet5.record.addresses import is_server, shown, sqlite_file, sqlite_uri, store_uri
from lenet5.record.advice import advice, quiet_and_impatient, what_to_install
from lenet5.record.experiment_page import experiment_tags, outdated_tags, run_page
from lenet5.record.lineage import Code
from lenet5.record.moved import follow_the_workspace, is_elsewhere
from lenet5.record.server import refuse_unfit
from lenet5.workspace import main_workspace

ATTEMPT, TRAINING, COMPLETING, RESULT, HISTORY_FROM = "attempt", "training", "completing", "result", "history_from"
DIFF = "pipeline/changes.diff"
DESCRIPTION = "mlflow.note.content"  # of a run, which the UI shows
_GOES_ON = "; then `dvc repro` goes on"
_LOCK_SECONDS = 600
_CLOUDS = ("boto3", "botocore", "google", "azure")
_TRAINED = "Training has ended. Its figures, files and model version come with the stage register: `dvc repro`."


class Store:
    """An experiment in a tracking store."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str) -> None:
        self.client, self.uri, self.experiment_id = client, uri, experiment_id

    def runs(self, tag: str, value: str, kind: int = ViewType.ACTIVE_ONLY) -> list[MlflowRun]:
        """The runs that carry ``tag``, oldest first; those in MLflow's bin where ``kind`` says so."""
        return tagged(self.client, self.experiment_id, tag, value, kind)

    def create_run(
        self, name: str, tags: Mapping[str, str], params: Mapping[str, str], code: Code, started: int | None = None
    ) -> MlflowRun:
        """Open a run, which began now or at ``started``, in milliseconds since 1970."""
        run = self.client.create_run(self.experiment_id, started, dict(tags), name)
        self.describe(run, params, code)
        return run

    def describe(self, run: MlflowRun, params: Mapping[str, str], code: Code) -> None:
        """Give a run its params, and what the working tree changed of its commit."""
        if code.diff:
            with tempfile.TemporaryDirectory() as folder:
                diff = Path(folder, Path(DIFF).name)
                diff.write_bytes(f"{code.diff}\n".encode(errors="surrogateescape"))
                self.client.log_artifact(run.info.run_id, str(diff), Path(DIFF).parent.as_posix())
        if not run.data.params:
            self.client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in params.items()])

    def close_training(self, run_id: str, training_digest: str) -> str:
        """Tag a run with what training produced; when an earlier run holds the very same, this one goes.

        Returns the id of the one that stays.
        """
        for run in self.runs(TRAINING, training_digest):
            if run.info.run_id != run_id:
                self.client.delete_run(run_id)
                return str(run.info.run_id)
        self.client.set_tag(run_id, TRAINING, training_digest)
        # Nobody may ever call the stage register, and no process of training is left to say so.
        self.client.set_tag(run_id, DESCRIPTION, _TRAINED)
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def page_of(self, run_id: str) -> str:
        """Where a person sees the run, as a line says it."""
        page = run_page(self.uri, self.experiment_id, run_id)
        return page if is_server(self.uri) else f"{page} (while `mlflow ui` runs)"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep out other processes of this workspace, or of any that has this file; a killed process holds nothing."""
        with _lock(self.uri):
            yield


def tagged(
    client: MlflowClient, experiment_id: str, tag: str, value: str, kind: int = ViewType.ACTIVE_ONLY
) -> list[MlflowRun]:
    """The runs that carry ``tag``, oldest first."""
    return every_run(client, experiment_id, f"tags.`{tag}` = '{value}'", kind, "start_time ASC")


def every_run(
    client: MlflowClient,
    experiment_id: str,
    condition: str,
    kind: int = ViewType.ACTIVE_ONLY,
    order: str = "start_time DESC",
) -> list[MlflowRun]:
    """All runs that fulfil ``condition``, in that ``order``, however many pages of them there are."""
    runs: list[MlflowRun] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, kind, order_by=[order], page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def connect(params: Params, then: str = _GOES_ON) -> Store:
    """Open the store and the experiment, creating what is not there.

    Raises UserError where it cannot be reached or used, in a line that ends with ``then``.
    """
    quiet_and_impatient()
    uri = store_uri()
    refuse_unfit(uri)
    name = experiment_name(params)
    with user_errors(uri, then):
        # Two processes that create the same database at once would both fail.
        with _lock(uri):
            file = sqlite_file(uri)
            if file:
                _create_database(file)
                follow_the_workspace(file, main_workspace())
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                local = _artifacts_beside(file).joinpath(folder_name(name)).as_uri() if file else None
                created = client.create_experiment(name, artifact_location=local, tags=experiment_tags())
                return Store(client, uri, created)
        if experiment.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {name!r} was deleted: `mlflow experiments restore --experiment-id "
                f"{experiment.experiment_id}` brings it back, or set register.experiment to another name"
            )
        for key, value in outdated_tags(experiment.tags).items():
            client.set_experiment_tag(experiment.experiment_id, key, value)
        return Store(client, uri, experiment.experiment_id)


def _create_database(file: Path) -> None:
    """Make the SQLite ``file`` where there is none: whole or not at all, whoever is killed meanwhile."""
    if file.exists():
        return
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    store = SqlAlchemyStore(sqlite_uri(new), _artifacts_beside(file).as_uri())
    store.engine.dispose()
    new.replace(file)


def _artifacts_beside(file: Path) -> Path:
    return file.with_name("mlruns")


def reader(uri: str) -> MlflowClient:
    """A client of a store that is there already. Raises UserError where it is a file that is not, or cannot be used."""
    quiet_and_impatient()
    refuse_unfit(uri)
    file = sqlite_file(uri)
    if file and not file.is_file():  # MLflow would make an empty one
        raise UserError(f"{file}: no MLflow record here; `dvc repro` or, where it runs nothing, `make record` makes it")
    root = main_workspace()
    with user_errors(uri, then=""):
        if file and is_elsewhere(file, root):  # asked first: a folder that is not theirs can be read all the same
            with _lock(uri):
                follow_the_workspace(file, root)
        return MlflowClient(tracking_uri=uri)


def experiment_name(params: Params) -> str:
    """MLFLOW_EXPERIMENT_NAME, or what ``params`` say."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or params.register_.experiment


@contextmanager
def user_errors(uri: str, then: str = _GOES_ON) -> Iterator[None]:
    """Turn what a person can mend about the store at ``uri`` into one line, which ends with ``then``."""
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UserError(f"MLflow at {shown(uri)}: {advice(str(error))}{then}") from error
    except ImportError as error:  # the driver of a database, or of a place for artifacts
        raise UserError(f"MLflow at {shown(uri)}: {what_to_install(error)}{then}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLOUDS:
            raise
        # MLflow lets through what the library of a place for artifacts says.
        raise UserError(f"artifacts of MLflow at {shown(uri)}: {advice(str(error))}{then}") from error


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    """A lock for everybody who writes to the file of ``uri``; of another store, for those of this workspace."""
    file = sqlite_file(uri)
    path = Path(f"{file.resolve()}.lock") if file else main_workspace() / "mlruns/.lock"
    lock = filelock.FileLock(path, timeout=_LOCK_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"{path}: held by another process for {_LOCK_SECONDS} s; end that process") from None
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path.parent}: not a folder; MLFLOW_TRACKING_URI must name a file in one") from None
    try:
        yield
    finally:
        lock.release()
