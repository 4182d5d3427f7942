"""A search as its MLflow record shows it: a parent run, and a child for each trial."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from lenet5.files import write_bytes
from lenet5.params import Params, flat_params
from lenet5.record.family import Family, Member, Status
from lenet5.record.live_run import gap_tag
from lenet5.record.result import Point, curve_points, readable
from lenet5.results.history import EpochRow
from lenet5.search.board import counts, leaderboard, markdown
from lenet5.search.confirm import Verdict, verdict_rows
from lenet5.search.engine import Row
from lenet5.search.plan import Plan, first_tried, shared_params, trial_params
from lenet5.search.study import Study
from lenet5.search.trials import Kind, Trial, best_first, chosen_row

_COLUMNS = [column.name for column in fields(EpochRow)]
_FIGURES = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss", "gap_accuracy", "gap_loss")
_STATUS: dict[Kind, Status] = {"complete": "FINISHED", "pruned": "KILLED", "stuck": "KILLED"}
_SAID = {"running": "under way", "unfinished": "it starts again when the sweep goes on"}


def family_of(
    study: Study, name: str, plan: Plan, base: Params, running: Iterable[int], status: Status, files: Path | None,
    found: Sequence[Verdict], ended: dict[int, Member],
) -> Family:  # fmt: skip
    """How sweep ``name`` stands: ``running`` are the trials in hand, ``status`` its own, ``files`` its artifacts.

    ``found`` is what a confirmation found. ``ended`` keeps the children of trials that have ended from call to call.
    """
    trials, in_hand = study.trials(), set(running)
    gap = gap_tag(trial_params(plan, base, first_tried(plan)))
    children = [ended.get(trial.number) or _child(trial, plan, base, trial.number in in_hand, gap) for trial in trials]
    ended.update({trial.number: child for trial, child in zip(trials, children, strict=True) if trial.ended})
    parent = _with_verdicts(_parent(study.key, name, plan, base, trials, status, gap), found)
    return Family(parent, children, files)


def write_files(study: Study, plan: Plan, file: str, content: bytes, folder: Path) -> None:
    """What the parent carries, beside pictures: the sweep's file, which was called so, and the leaderboard."""
    write_bytes(folder / file, content)
    board = markdown(*leaderboard(study.trials(), plan, most=plan.trials))
    write_bytes(folder / "leaderboard.md", board.encode())


def _parent(
    key: str, name: str, plan: Plan, base: Params, trials: list[Trial], status: Status, gap: Mapping[str, str]
) -> Member:
    best = best_first(trials, plan.objective)
    params = shared_params(plan, base) | {param: str(values) for param, values in plan.space.items()}
    figures = _figures(best[0], plan, base) if best else {}
    ended = [trial for trial in trials if trial.ended]
    totals = {"trials": float(len(ended)), "trials_complete": float(len(best))}
    told = (
        f"A sweep of {plan.trials} trials: {counts(trials)}.\n\n{markdown(*leaderboard(trials, plan))}\n"
        f"`lenet5 sweep show {name}` shows more, and `lenet5 sweep run` with {name}.yaml goes on where it stopped."
    )
    tags = {"sweep": name, "objective": plan.objective, **gap}
    won = {"best_trial": str(best[0].number)} if best else {}
    last = max((trial.ended or 0 for trial in trials), default=0)
    first = min((trial.started for trial in trials), default=0)
    return Member(key, f"sweep-{name}", status, params, tags | won, told, (), figures | totals, last, first)


def _with_verdicts(parent: Member, found: Sequence[Verdict]) -> Member:
    """The parent with what became of its winner: the gain that the sweep claimed, and what fresh pairs left of it."""
    if not found:
        return parent
    best = found[0]
    gains = {"gain_claimed": best.claimed, "gain_kept": best.gain, "gain_low": best.low, "gain_p": best.p}
    told_at = best.judged or parent.ended
    points = [Point(*gain, 0, told_at) for gain in readable(gains).items()] if not best.diverged else []
    tags = {"confirmed": str(best.trial) if best.confirmed else "none"}
    told = f"{parent.description}\n\nOn {best.pairs} fresh pairs of seed and split:\n\n{markdown(*verdict_rows(found))}"
    return replace(parent, points=points, tags={**parent.tags, **tags}, description=told)


def _child(trial: Trial, plan: Plan, base: Params, in_hand: bool, gap: Mapping[str, str]) -> Member:
    whole = plan.space.keys() <= trial.tried.keys()  # not where Ctrl-C came while it was asked for
    params = flat_params(trial_params(plan, base, trial.tried), "data", "model", "train") if whole else {}
    state = trial.kind if trial.ended else "running" if in_hand else "unfinished"
    status: Status = _STATUS.get(trial.kind, "FAILED") if trial.ended else "RUNNING" if in_hand else "KILLED"
    return Member(
        key=str(trial.number),
        name=f"trial-{trial.number}",
        status=status,
        params=params,
        tags={"trial": str(trial.number), "trial.state": state, **gap},
        description=trial.note or _SAID.get(state, ""),
        points=[point for row in trial.rows for point in _points(row)],
        figures=_figures(trial, plan, base) if trial.kind == "complete" else {},
        ended=trial.ended or 0,
        started=trial.started,
    )


def _points(row: Row) -> list[Point]:
    return curve_points(EpochRow(**{name: row[name] for name in _COLUMNS}), int(row["time"]))


def _figures(trial: Trial, plan: Plan, base: Params) -> dict[str, float]:
    chosen = chosen_row(trial.rows, trial_params(plan, base, trial.tried).train)
    return readable({name: chosen[name] for name in _FIGURES} | {"best_epoch": chosen["epoch"]})
