"""The run that ``train`` streams to while it trains."""

from collections.abc import Iterable, Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lenet5.params import Params, flat_params
from lenet5.record.experiment_page import GAP_IS_TO
from lenet5.record.lineage import EXPERIMENT_TAGS, Code
from lenet5.record.result import TRAIN_ACCURACY, Point, run_name
from lenet5.record.store import ATTEMPT, DESCRIPTION, TRAINING, Store, user_errors
from lenet5.record.streaming import POINTS_A_CALL
from lenet5.results.chance import ChanceWatch, stuck

_FAILURE = "failure"
_FAILURE_TAGS = (_FAILURE, DESCRIPTION)
_SAMPLING_INTERVAL = 2  # seconds; MLflow's own ten would leave a short training without a point


class TrainingRun:
    """The run that ``train`` streams to: opened by the first call, found again by its attempt after a failure."""

    def __init__(self, store: Store, attempt: str, params: Params, code: Code, tags: Mapping[str, str]) -> None:
        self._store, self._params = store, params
        self._watch, self._watched, self._said = ChanceWatch(), 0, ""
        self._stuck_since: int | None = None
        opened = store.runs(ATTEMPT, attempt)
        run = opened[0] if opened else open_run(store, params, code, {ATTEMPT: attempt, **tags})
        self.run_id: str = run.info.run_id
        self._there: dict[tuple[str, int], float] = {}
        if opened:
            # Epochs after the last checkpoint are trained again, and would come with new timestamps.
            self._there = points_there(store.client, self.run_id, run.data.metrics)
            store.describe(run, trained_params(params), code)
            # What ends it is what made the result: it may be another experiment, from another commit.
            store.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            store.client.update_run(self.run_id, status="RUNNING", name=run_name(params))
            for tag in (*_FAILURE_TAGS, *EXPERIMENT_TAGS):
                if tag in run.data.tags and tag not in tags:
                    store.client.delete_tag(self.run_id, tag)
        self._monitor = self._start_monitor(bool(opened)) if params.register_.system_metrics else None

    def log_points(self, points: Sequence[Point]) -> None:
        """Add points; MLflow keeps one of those that are equal in key, step, timestamp and value."""
        new = [point for point in points if (point.key, point.step) not in self._there]
        log_points(self._store.client, self.run_id, new)
        self._tell_of_chance(points)
        # MLflow's thread ends for good the first time that a server does not answer it.
        thread = self._monitor and self._monitor._process
        if thread and not thread.is_alive():
            self._monitor = self._start_monitor(resumes=True)

    def finish(self, training_digest: str) -> str:
        """As ``Store.close_training``; returns where the run that stays is seen."""
        self._stop_monitor()
        with self._store.exclusive():
            return self._store.page_of(self._store.close_training(self.run_id, training_digest))

    def fail(self, reason: str, killed: bool) -> None:
        """Close the run as FAILED, or KILLED, with the reason as a tag and in its description."""
        self._stop_monitor()
        for tag in _FAILURE_TAGS:
            self._store.client.set_tag(self.run_id, tag, f"Training did not end: {reason}")
        self._store.client.set_terminated(self.run_id, "KILLED" if killed else "FAILED")

    def _tell_of_chance(self, points: Sequence[Point]) -> None:
        """Let the description say that nothing is being learned, for as long as that is so."""
        for point in points:
            if point.key == TRAIN_ACCURACY and point.step > self._watched:
                self._watched = point.step
                self._stuck_since = self._watch.at_chance_since(point.step, point.value)
        since = self._stuck_since
        text = "" if since is None else f"This training has been {stuck(f'since epoch {since}', self._params)}"
        if text != self._said:
            self._store.client.set_tag(self.run_id, DESCRIPTION, text)
            self._said = text

    def _start_monitor(self, resumes: bool) -> SystemMetricsMonitor:
        monitor = SystemMetricsMonitor(
            self.run_id, _SAMPLING_INTERVAL, resume_logging=resumes, tracking_uri=self._store.uri
        )
        monitor.start()
        return monitor

    def _stop_monitor(self) -> None:
        if self._monitor:
            self._monitor.finish()
            self._monitor = None


def catch_up(store: Store, attempts: Iterable[str], training_digest: str) -> bool:
    """Let the store know how ``attempts`` ended, where it did not hear that from training itself.

    Returns whether the store knows of one of them.
    """
    with user_errors(store.uri), store.exclusive():
        runs = [run for attempt in attempts for run in store.runs(ATTEMPT, attempt)]
        for run in runs:
            if TRAINING not in run.data.tags:
                if _FAILURE in run.data.tags:  # another training took it for cut short
                    store.client.delete_tag(run.info.run_id, _FAILURE)
                store.close_training(run.info.run_id, training_digest)
        return bool(runs)


def close_cut_short(store: Store, attempts: Iterable[str]) -> None:
    """Close the runs of ``attempts``, which were killed before they could; one that goes on opens its own again."""
    with user_errors(store.uri):
        for run in (run for attempt in attempts for run in store.runs(ATTEMPT, attempt)):
            if run.info.status == "RUNNING" and TRAINING not in run.data.tags:
                for tag in _FAILURE_TAGS:
                    store.client.set_tag(run.info.run_id, tag, "Training did not end: its process was killed")
                store.client.set_terminated(run.info.run_id, "KILLED")


def open_run(store: Store, params: Params, code: Code, tags: Mapping[str, str]) -> MlflowRun:
    """Open a run named by its recipe, with the params that training used."""
    return store.create_run(run_name(params), {**tags, **gap_tag(params)}, trained_params(params), code)


def gap_tag(params: Params) -> dict[str, str]:
    """The tag of a run, one of many too, that says what its gaps compare the training images with."""
    other = "validation images" if params.data.validation_size else "test images (no validation images)"
    return {GAP_IS_TO: other}


def trained_params(params: Params) -> dict[str, str]:
    """The params that decide what training produces, as MLflow shows them."""
    return flat_params(params, "data", "model", "train")


def one_of_each(
    client: MlflowClient, runs: Iterable[MlflowRun], tag: str, in_use: Mapping[str, MlflowRun]
) -> dict[str, MlflowRun]:
    """The run of each value of ``tag``. Of several, the one that is in use stays, or the first.

    Where an answer was lost on the way MLflow's client asks again, and there are two.
    """
    kept = dict(in_use)
    for run in runs:
        if kept.setdefault(run.data.tags.get(tag, ""), run).info.run_id != run.info.run_id:
            client.delete_run(run.info.run_id)
    return kept


def log_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Send points, in as few calls as MLflow allows."""
    for start in range(0, len(points), POINTS_A_CALL):
        part = points[start : start + POINTS_A_CALL]
        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in part]
        client.log_batch(run_id, metrics=metrics)


def missing_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> list[Point]:
    """Those of ``points`` that the run does not hold."""
    there = points_there(client, run_id, {point.key for point in points})
    return [point for point in points if (point.key, point.step) not in there]


def points_there(client: MlflowClient, run_id: str, keys: Iterable[str]) -> dict[tuple[str, int], float]:
    """The values of the curves' points that the run holds, by (key, step)."""
    return {(key, one.step): one.value for key in keys for one in client.get_metric_history(run_id, key)}
