"""Several seeds of one recipe as one run, with a child for each that has finished; a repetition doubles nothing."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.record.lineage import Code
from lenet5.record.live_run import gap_tag, log_points, missing_points, one_of_each, trained_params
from lenet5.record.result import epoch_points, readable, run_name
from lenet5.record.store import DESCRIPTION, Store, user_errors
from lenet5.results.history import EpochRow

SEEDS, SEED = "seeds", "seed"
"""Tags: of the parent, what was asked for, and of a child, which seed it is. A repetition finds them by these."""

THEN = "; what has finished is kept, and the same command sends it"
_KILLED_PATIENCE = 0.5  # who presses Ctrl-C does not wait for a store


class SeedsRun:
    """The run of one question, opened, or found again by ``question``. Raises UserError as ``user_errors``."""

    def __init__(
        self, store: Store, params: Params, seeds: Sequence[int], question: str, tags: Mapping[str, str], code: Code
    ) -> None:
        self._store, self._recipe, self._code = store, trained_params(params), code
        self._tags, self._question = {**tags, **gap_tag(params)}, question
        with user_errors(store.uri, THEN):
            self._parents = self._find_or_open(run_name(params), seeds)
            parent = self._parents[question]
            self.run_id: str = parent.info.run_id
            self.page = store.page_of(self.run_id)
            self._children = self._find_children({})
            if parent.info.status == "KILLED":
                store.client.update_run(self.run_id, status="RUNNING")

    def add(self, seed: int, rows: Sequence[EpochRow], figures: Mapping[str, float]) -> None:
        """Record a seed that has finished, or what of it is missing. Raises as ``user_errors``."""
        with user_errors(self._store.uri, THEN):
            if str(seed) not in self._children:  # a store that went away may have taken it, and not have answered
                self._children = self._find_children(self._children)
            child, recipe = self._children.get(str(seed)), self._recipe | {"train.seed": str(seed)}
            points = [point for row in rows for point in epoch_points(row, None)]
            if child is None:
                tags = {**self._tags, MLFLOW_PARENT_RUN_ID: self.run_id, SEED: str(seed)}
                child = self._store.create_run(f"seed-{seed}", tags, recipe, self._code)
            elif child.info.status == "FINISHED":
                return
            else:
                self._store.describe(child, recipe, self._code)
                points = missing_points(self._store.client, child.info.run_id, points)
            log_points(self._store.client, child.info.run_id, points)
            self._finish(child.info.run_id, figures)
            self._children[str(seed)] = self._store.client.get_run(child.info.run_id)

    def finish(self, summary: Mapping[str, float]) -> None:
        """Give the parent its figures, and close it. Raises as ``user_errors``."""
        with user_errors(self._store.uri, THEN):
            # Requests that a server had taken and not yet answered are done by now.
            one_of_each(self._store.client, self._store.runs(SEEDS, self._question), SEEDS, self._parents)
            self._find_children(self._children)
            if self._store.client.get_run(self.run_id).info.status != "FINISHED":
                self._finish(self.run_id, summary)

    def interrupted(self) -> None:
        """Say that the seeds are not all there, if the store answers at once."""
        thread = threading.Thread(target=self._kill, daemon=True)
        thread.start()
        thread.join(_KILLED_PATIENCE)

    def _find_or_open(self, name: str, seeds: Sequence[int]) -> dict[str, MlflowRun]:
        shared = {name: value for name, value in self._recipe.items() if name != "train.seed"}
        params = shared | {"seeds": str(len(seeds))}
        runs = self._store.runs(SEEDS, self._question)
        if not runs:
            note = f"Means over {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}, with their deviation and interval."
            tags = {**self._tags, SEEDS: self._question, DESCRIPTION: note}
            self._store.create_run(f"{name}-and-{len(seeds) - 1}-more", tags, params, self._code)
            runs = self._store.runs(SEEDS, self._question)
        # Of two, the one that has children is in use.
        found = sorted(runs, key=lambda run: not self._children_of(run.info.run_id))
        parents = one_of_each(self._store.client, found, SEEDS, {})
        if not parents[self._question].data.params:  # nobody was told of it, or who opened it was killed over it
            self._store.describe(parents[self._question], params, self._code)
        return parents

    def _find_children(self, in_use: Mapping[str, MlflowRun]) -> dict[str, MlflowRun]:
        return one_of_each(self._store.client, self._children_of(self.run_id), SEED, in_use)

    def _children_of(self, run_id: str) -> list[MlflowRun]:
        return self._store.runs(MLFLOW_PARENT_RUN_ID, run_id)

    def _finish(self, run_id: str, figures: Mapping[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, value, now, 0) for key, value in readable(figures).items()]
        self._store.client.log_batch(run_id, metrics=metrics)
        self._store.client.set_terminated(run_id, "FINISHED")

    def _kill(self) -> None:
        with suppress(UserError), user_errors(self._store.uri):
            self._store.client.set_terminated(self.run_id, "KILLED")
