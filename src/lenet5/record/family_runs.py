"""The MLflow runs of a family: found by their tags, and given what they lack."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from mlflow.entities import Metric, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lenet5.record.family import Family, Member
from lenet5.record.lineage import Code
from lenet5.record.live_run import log_points, one_of_each, points_there
from lenet5.record.store import DESCRIPTION, Store

FAMILY, MEMBER = "family", "member"
"""The tags by which parent and children are found: the owner's key, and the child's."""


class FamilyRuns:
    """What one connection knows of a family: which runs there are, and what they hold. All carry ``tags``."""

    def __init__(self, store: Store, tags: Mapping[str, str], code: Code) -> None:
        self._store, self._tags, self._code = store, tags, code
        self._runs: dict[str, MlflowRun] | None = None  # the parent's key is empty
        self._there: dict[str, dict[tuple[str, int], float]] = {}
        self._sent: dict[str, Member] = {}

    def send(self, family: Family, arrived: Callable[[], None]) -> None:
        """Send what is lacking. The parent's end comes last: a parent that has ended lacks nothing."""
        parent = _tagged(family.parent, {FAMILY: family.parent.key})
        if self._runs is None:
            self._runs = self._find(parent.key)
        run = self._run("", replace(parent, status="RUNNING", figures={}), self._code)
        of_parent = {FAMILY: parent.key, MLFLOW_PARENT_RUN_ID: run.info.run_id}
        plain = replace(self._code, diff="")  # the parent has what the working tree changes
        for child in (_tagged(one, of_parent | {MEMBER: one.key}) for one in family.children):
            if self._sent.get(child.key) != child and not self._has_ended(child):
                self._member(child.key, child, plain)
                arrived()
        if self._sent.get("") != parent:
            if family.files and parent.status != "RUNNING":
                self._store.client.log_artifacts(run.info.run_id, str(family.files))
            if parent.status == "FINISHED":
                self._find(parent.key)  # requests that a server had taken and not yet answered are done by now
            self._member("", parent, self._code)
            arrived()

    def _find(self, key: str) -> dict[str, MlflowRun]:
        """The run of each member."""
        return one_of_each(self._store.client, self._store.runs(FAMILY, key), MEMBER, self._runs or {})

    def _has_ended(self, child: Member) -> bool:
        """Whether the store had this child whole before: its end is the last that is sent."""
        run = (self._runs or {}).get(child.key)
        return (
            child.key not in self._sent
            and run is not None
            and run.info.status == child.status != "RUNNING"
            and child.tags.items() <= run.data.tags.items()
            and child.params.items() <= run.data.params.items()
            and all(_same(value, run.data.metrics.get(name)) for name, value in child.figures.items())
        )

    def _run(self, key: str, member: Member, code: Code) -> MlflowRun:
        runs = self._runs if self._runs is not None else {}
        if key not in runs:
            tags = {**self._tags, **member.tags, DESCRIPTION: member.description}
            runs[key] = self._store.create_run(member.name, tags, member.params, code, member.started or None)
            self._there[key] = {}
            return runs[key]
        run = runs[key]
        if key not in self._there:
            self._there[key] = points_there(self._store.client, run.info.run_id, run.data.metrics)
            self._store.describe(run, member.params, code)
            if run.info.status != member.status == "RUNNING":
                self._store.client.update_run(run.info.run_id, status="RUNNING")
        return run

    def _member(self, key: str, member: Member, code: Code) -> None:
        client, run = self._store.client, self._run(key, member, code)
        if key and member.ended and _is_of_another_attempt(member, run, self._there[key]):
            client.delete_run(run.info.run_id)
            self._runs = {name: one for name, one in (self._runs or {}).items() if name != key}
            self._sent.pop(key, None)
            run = self._run(key, member, code)
        run_id, there = run.info.run_id, self._there[key]
        # A point of no epoch takes the place of an earlier one; MLflow keeps one of those that are equal.
        new = [point for point in member.points if not point.step or (point.key, point.step) not in there]
        log_points(client, run_id, new)
        there |= {(point.key, point.step): point.value for point in new}
        before = self._sent.get(key)
        tags = {**member.tags, DESCRIPTION: member.description}
        if before is None or {**before.tags, DESCRIPTION: before.description} != tags:
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        if member.figures and (before is None or before.figures != member.figures):
            figures = [Metric(name, value, member.ended, 0) for name, value in member.figures.items()]
            client.log_batch(run_id, metrics=figures)
        if member.status != "RUNNING":
            client.set_terminated(run_id, member.status, end_time=member.ended or None)
        elif before is not None and before.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        self._sent[key] = member


def _is_of_another_attempt(child: Member, run: MlflowRun, there: Mapping[tuple[str, int], float]) -> bool:
    """Whether the run of a child that has ended holds what is not its own: MLflow can take nothing back.

    It began anew on another kind of machine, say, where params and figures differ.
    """
    own = {(point.key, point.step): point.value for point in child.points}
    others = (place for place, value in there.items() if place[1] and not _same(value, own.get(place)))
    return not run.data.params.items() <= child.params.items() or any(others)


def _same(value: float, kept: float | None) -> bool:
    return kept is not None and (math.isclose(value, kept) or not math.isfinite(value))


def _tagged(member: Member, tags: Mapping[str, str]) -> Member:
    """``member`` with the tags by which it is found."""
    return replace(member, tags={**member.tags, **tags})
