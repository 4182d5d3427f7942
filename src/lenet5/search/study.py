"""The search itself, kept in a journal: what to try next, and whether a trial is worth going on with.

The only module that knows Optuna. One process at a time writes a journal; a lock beside it sees to that.
"""

import json
import math
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from lenet5.errors import UserError
from lenet5.search.engine import Row
from lenet5.search.plan import Plan, Prune, Range
from lenet5.search.trials import Kind, Trial, lower_is_better

_SHARES = 1000  # a trial's epochs are told to Optuna as so many shares: some trials have more epochs than others
_HALF = 2  # of the trials that come to a quarter, a half ... of their epochs, this one in so many goes on
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "stuck": TrialState.PRUNED}
_PLAN, _ORIGIN, _KEY = "plan", "origin", "key"  # of the study
_ROW, _LOST, _END = "row ", "lost", "end"  # of a trial


class Study:
    """A search that goes on where its journal ends. ``number`` is a trial's."""

    def __init__(self, study: optuna.Study, plan: Plan) -> None:
        self._study, self._plan = study, plan

    def begin(self, origin: Mapping[str, str]) -> dict[str, str]:
        """Keep the plan, and where the search comes from where it is new; where it came from when it was.

        The plan of another origin is not kept: the search goes on with its own, or not at all.
        """
        attrs = self._study.user_attrs
        began = dict(attrs[_ORIGIN] if _KEY in attrs else origin)
        if began == origin and attrs.get(_PLAN) != (plan := self._plan.model_dump()):  # more trials than at first, say
            self._study.set_user_attr(_PLAN, plan)
        if _KEY not in attrs:
            self._study.set_user_attr(_ORIGIN, began)
            self._study.set_user_attr(_KEY, uuid.uuid4().hex)
        return began

    @property
    def key(self) -> str:
        """What tells this search from all others, of the same name too."""
        return str(self._study.user_attrs[_KEY])

    def trials(self) -> list[Trial]:
        """All trials, in their order."""
        return [_trial(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def unfinished(self) -> list[int]:
        """The trials that were begun and have no end."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [frozen.number for frozen in running]

    def ask(self) -> int:
        """Begin another trial."""
        trial = self._study.ask()
        self._suggest(trial)
        return int(trial.number)

    def tried(self, number: int) -> dict[str, Any]:
        """The params that a trial tries; those it was not yet given when the search was killed, now."""
        return self._suggest(self._resumed(number))

    def add_row(self, number: int, row: Row, epochs: int) -> bool:
        """Keep an epoch's row; whether the trial, of so many ``epochs`` in all, is worse than others at this point."""
        epoch = int(row["epoch"])
        trial = self._resumed(number)
        kept = trial.user_attrs.get(_name(epoch), {})
        if {**kept, **row} != kept:  # a trial that began anew gives the same rows again, but on another kind of machine
            trial.set_user_attr(_name(epoch), {**row, "time": time.time_ns() // 1_000_000})
        share, before = (_SHARES * last // epochs for last in (epoch, epoch - 1))
        if not kept and share > before:  # Optuna judges by the first that it was told, and warns of each one after it
            trial.report(float(row[self._plan.objective]), share)
        return bool(trial.should_prune())

    def lose(self, number: int, reason: str) -> int:
        """Keep that a trial's process ended; how many times it has."""
        trial = self._resumed(number)
        reasons = [*trial.user_attrs.get(_LOST, []), reason]
        trial.set_user_attr(_LOST, reasons)
        return len(reasons)

    def end(self, number: int, kind: Kind, note: str, epochs: int, value: float | None = None) -> None:
        """Give a trial its end, after so many ``epochs``; ``value`` of a complete one."""
        self._resumed(number).set_user_attr(_END, {"kind": kind, "note": note, "epochs": epochs})
        self._study.tell(number, value, state=_STATES.get(kind, TrialState.FAIL))

    def importances(self) -> dict[str, float]:
        """How much of the objective's variation each param explains, the largest first; empty where nothing tells."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len({trial.value for trial in complete}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return dict(optuna.importance.get_param_importances(self._study))
            except (RuntimeError, ValueError):  # every trial tried the same
                return {}

    def pictures(self, folder: Path) -> list[Path]:
        """Optuna's pictures of the search, as PNG files in ``folder``; those that there are enough trials for."""
        import optuna.visualization.matplotlib as draw

        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len({trial.value for trial in complete}) < 2:
            return []
        drawn = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its drawing is experimental, and says so each time
            kinds: dict[str, tuple[Callable[..., Any], Callable[[Any], None]]] = {
                "history": (draw.plot_optimization_history, _as_it_is),
                "importance": (draw.plot_param_importances, _as_it_is),
                "parallel": (draw.plot_parallel_coordinate, _with_numbers_before_the_lines),
                "slices": (draw.plot_slice, _with_short_names),
            }
            for name, (function, tidy) in kinds.items():
                try:
                    axes = function(self._study, target_name=self._plan.objective.replace("_", " "))
                    drawn.append(_save(axes, tidy, folder / f"{name}.png"))
                except (RuntimeError, ValueError):
                    continue
        return drawn

    def _resumed(self, number: int) -> optuna.Trial:
        frozen = self._study.get_trials(deepcopy=False)[number]
        return optuna.Trial(self._study, frozen._trial_id)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        return {name: _suggest(trial, name, values) for name, values in self._plan.space.items()}


def open_study(journal: Path, name: str, plan: Plan) -> Study:
    """The search whose journal this is; a new one where there is none. Raises UserError for a damaged journal."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    if journal.exists():
        _mend(journal)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if isinstance(plan.prune, Prune):
        first = max(1, math.ceil(_SHARES * plan.prune.after))
        pruner = optuna.pruners.SuccessiveHalvingPruner(first, reduction_factor=_HALF)
    storage = _storage(journal)
    study = _loaded(journal, storage, name) if _begun(storage, name) else None
    if study and _KEY not in study.user_attrs:  # its first process ended over it, and the objective may be another now
        optuna.delete_study(study_name=name, storage=storage)
        study = None
    if study:
        study.pruner = pruner
    else:
        lower = lower_is_better(plan.objective)
        study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize" if lower else "maximize", pruner=pruner
        )
    # One that went on with the same seed would try at random what it has tried before.
    seed = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
    return Study(study, plan)


def read_study(journal: Path, name: str) -> tuple[Study, Plan]:
    """The search whose journal this is, to be looked at while another process may go on with it.

    Raises UserError for a damaged journal, or one in which nothing has begun.
    """
    _refuse_damage(journal)
    storage = _storage(journal)
    study = _loaded(journal, storage, name) if _begun(storage, name) else None
    if study is None or _KEY not in study.user_attrs:  # its first process was killed, or a copy got this name
        raise UserError(f"{journal}: sweep {name} has not begun in it; `lenet5 sweep run FILE` begins it")
    plan = Plan.model_validate(study.user_attrs[_PLAN])
    return Study(study, plan), plan


def _storage(journal: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=_NoLock(str(journal))))
    except (LookupError, TypeError, ValueError, AssertionError) as error:  # a line of JSON that is not Optuna's
        raise UserError(_damaged(journal, f"an entry is not whole ({error})")) from None


def _begun(storage: JournalStorage, name: str) -> bool:
    return name in optuna.get_all_study_names(storage)


def _loaded(journal: Path, storage: JournalStorage, name: str) -> optuna.Study:
    study = optuna.load_study(storage=storage, study_name=name)
    if _KEY in study.user_attrs and not {_PLAN, _ORIGIN} <= study.user_attrs.keys():
        raise UserError(_damaged(journal, "what it was begun with is gone"))
    return study


def _mend(journal: Path) -> None:
    """Take the end of a line that was never written whole off the journal: what it told is done again."""
    _refuse_damage(journal)
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with journal.open("r+b") as stream:
            stream.truncate(len(whole))


def _refuse_damage(journal: Path) -> None:
    """Raise UserError at the first line that is no entry of a journal; the last may be being written."""
    for number, line in enumerate(journal.read_bytes().split(b"\n")[:-1], 1):
        try:
            json.loads(line)["op_code"]
        except (ValueError, TypeError, KeyError):
            raise UserError(_damaged(journal, f"line {number} is damaged")) from None


def _damaged(journal: Path, what: str) -> str:
    return f"{journal}: {what}; bring the file back from a copy, or move it away to begin anew"


def _trial(frozen: FrozenTrial) -> Trial:
    end = frozen.user_attrs.get(_END, {}) if frozen.state.is_finished() else {}
    told = (row for name, row in frozen.user_attrs.items() if name.startswith(_ROW))
    last = end.get("epochs", math.inf)  # what comes after is of an attempt that was lost
    rows = sorted((row for row in told if row["epoch"] <= last), key=lambda row: row["epoch"])
    times = [
        None if when is None else int(when.timestamp() * 1000)
        for when in (frozen.datetime_start, frozen.datetime_complete)
    ]
    return Trial(
        number=frozen.number,
        tried=frozen.params,
        kind=cast("Kind", end.get("kind", "running")),
        note=end.get("note", ""),
        value=frozen.value if frozen.state == TrialState.COMPLETE else None,
        rows=rows,
        started=times[0] or 0,
        ended=times[1],
    )


def _name(epoch: int) -> str:
    return f"{_ROW}{epoch}"


def _suggest(trial: optuna.Trial, name: str, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(name, values.low, values.high, log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def _as_it_is(_: Any) -> None:
    pass


def _with_short_names(axes: Any) -> None:
    if axes.get_xlabel():
        axes.set_xlabel(axes.get_xlabel().rpartition(".")[2], rotation=20)
        axes.tick_params(axis="x", which="both", labelrotation=60)


def _with_numbers_before_the_lines(axes: Any) -> None:
    """The lines of one axis run through the numbers of the next."""
    axes.grid(visible=False)
    for label in axes.get_yticklabels(which="both"):
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})


def _save(drawn: Any, tidy: Callable[[Any], None], path: Path) -> Path:
    figure = (drawn.flat[0] if hasattr(drawn, "flat") else drawn).figure  # slices come as an array
    figure.set_size_inches(12, 6)
    for axes in figure.axes:
        tidy(axes)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    figure.clear()
    return path


class _NoLock(JournalFileOpenLock):
    """The lock of the whole sweep is held already; one for each line would outlive a driver that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
