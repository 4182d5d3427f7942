"""The best trials of a sweep against the current params, on pairs of seed and split that no trial used."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lenet5.errors import UserError
from lenet5.files import digest, write_json
from lenet5.params import TRAINING_IMAGES, Params, with_values
from lenet5.record.promotion import told_p
from lenet5.search.engine import Ended, Engine, Failed, Gained, Job, Lost, Row
from lenet5.search.luck import Gain, fresh_pairs, holm, paired_gain
from lenet5.search.plan import Plan, trial_params
from lenet5.search.runs import run_all
from lenet5.search.trials import Trial, best_first, chosen_row, lower_is_better
from lenet5.workspace import PARAMS_FILE

CURRENT = "current"


@dataclass(frozen=True)
class Verdict:
    """What became of a trial's gain over the current params: ``claimed`` by the sweep, and on fresh pairs.

    ``p`` is Holm's, for all that were compared together. Gains are positive where the trial is better.
    """

    trial: int
    claimed: float
    gain: float
    low: float
    high: float
    p: float
    pairs: int
    alpha: float
    diverged: int = 0
    """On so many of the pairs its loss was no number any more: then it has no gain, and p is 1."""
    judged: int = 0
    """In milliseconds since 1970; 0 where that was not kept yet."""

    @property
    def confirmed(self) -> bool:
        """Whether the trial is better, by more than luck."""
        return self.gain > 0 and self.p <= self.alpha and not self.diverged


class Values:
    """Objectives of trainings, kept in a file by what was trained: none is trained twice. None: it diverged.

    ``what`` names the objective, and all but the params that decides it.
    """

    def __init__(self, path: Path, what: Mapping[str, str]) -> None:
        self._path, self._what = path, dict(sorted(what.items()))
        self._values: dict[str, float | None] = {}
        if path.is_file():
            try:
                self._values = json.loads(path.read_bytes())
            except ValueError:
                raise UserError(f"{path}: not JSON any more; move it away, and its trainings are done again") from None

    def __contains__(self, params: Params) -> bool:
        return self._key(params) in self._values

    def __getitem__(self, params: Params) -> float | None:
        return self._values[self._key(params)]

    def put(self, params: Params, value: float | None) -> None:
        """Keep what it gave."""
        self._values[self._key(params)] = value
        write_json(self._path, self._values)

    def _key(self, params: Params) -> str:
        recipe = params.model_dump_json(include={"data", "model", "train"})
        return digest(f"{recipe}{self._what}".encode())


def candidates(trials: Sequence[Trial], plan: Plan, base: Params, top: int) -> dict[str, Params]:
    """The params of the ``top`` best trials by their numbers, and the current ones on the same images.

    Trials that tried the same are one. Raises UserError where no trial is complete, or one cannot be compared.
    """
    best = best_first(trials, plan.objective)
    if not best:
        raise UserError("no trial of this sweep is complete yet; `lenet5 sweep run` goes on with it")
    same_data = {name: value for name, value in plan.fixed.items() if name.startswith("data.")}
    current = Params.model_validate(with_values(base, same_data))
    different: dict[str, Params] = {}
    for trial in best:
        params = trial_params(plan, base, trial.tried)
        if len(different) < top and params not in different.values():
            different[str(trial.number)] = params
    chose = [number for number, params in different.items() if params.train.weights != "last"]
    if chose and current.train.weights == "last":
        raise UserError(
            f"trial {chose[0]} kept the epoch that is best on the images that measure it, and {PARAMS_FILE} the last: "
            "that flatters it; set train.weights there to best_validation"
        )
    return {CURRENT: current} | different


def trainings(who: Mapping[str, Params], seeds: int) -> Iterator[tuple[str, Params]]:
    """What is trained: everybody on each fresh pair, and the current params as the trials were."""
    first, *fresh = _pairs(who, seeds)
    yield f"{CURRENT} as the trials", _on(who[CURRENT], *first)
    for seed, split in fresh:
        for name, params in who.items():
            yield f"{name} with seed {seed} and split {split}", _on(params, seed, split)


def train_all(
    engine: Engine, wanted: Sequence[tuple[str, Params]], objective: str, values: Values, say: Callable[[str], None]
) -> None:
    """Train what is not in ``values``. Raises UserError where one cannot be trained."""
    missing: dict[str, Params] = {}
    for name, params in wanted:
        if params not in values and params not in missing.values():
            missing[f"trial {name}"] = params
    done, rows = len(wanted) - len(missing), defaultdict[str, list[Row]](list)
    for event in run_all(engine, [Job(name, params.model_dump(by_alias=True)) for name, params in missing.items()]):
        match event:
            case Gained():
                rows[event.key].append(event.row)
            case Lost():
                rows.pop(event.key, None)
            case Ended():
                params, done = missing[event.key], done + 1
                values.put(params, value := float(chosen_row(rows.pop(event.key), params.train)[objective]))
                say(f"{done} of {len(wanted)}: {event.key}: {objective.replace('_', ' ')} {value:.4f}")
            case Failed():
                values.put(missing[event.key], None)
                done += 1
                say(f"{done} of {len(wanted)}: {event.key}: {event.reason}")


def verdicts(
    trials: Sequence[Trial], who: Mapping[str, Params], objective: str, alpha: float, seeds: int, values: Values
) -> list[Verdict]:
    """What became of each trial's gain: those that are confirmed first, and the largest gain first.

    Raises UserError where the current params diverged.
    """
    now = time.time_ns() // 1_000_000
    sign, current = 1 if lower_is_better(objective) else -1, who[CURRENT]
    first, *fresh = _pairs(who, seeds)
    held_out = current.data.validation_size / TRAINING_IMAGES
    before, *against = [_of_current(values, _on(current, *pair)) for pair in (first, *fresh)]
    tried = {name: params for name, params in who.items() if name != CURRENT}
    reached = {name: [values[_on(params, *pair)] for pair in fresh] for name, params in tried.items()}
    gains = {name: _gain(against, found, sign, held_out) for name, found in reached.items()}
    adjusted = holm([gain.p for gain in gains.values()])
    all_of_them = [
        Verdict(
            trial=int(name), claimed=sign * (before - float(trials[int(name)].value or 0)),
            gain=gain.mean, low=gain.low, high=gain.high, p=p, pairs=seeds, alpha=alpha,
            diverged=reached[name].count(None), judged=now,
        )
        for (name, gain), p in zip(gains.items(), adjusted, strict=True)
    ]  # fmt: skip
    return sorted(all_of_them, key=lambda verdict: (not verdict.confirmed, verdict.diverged, -verdict.gain))


def _gain(against: Sequence[float], found: Sequence[float | None], sign: int, held_out: float) -> Gain:
    gains = [sign * (old - new) for old, new in zip(against, found, strict=True) if new is not None]
    return paired_gain(gains, held_out) if len(gains) == len(found) else Gain(0.0, 0.0, 0.0, 1.0)


def _of_current(values: Values, params: Params) -> float:
    value = values[params]
    if value is None:
        pair = f"train.seed {params.train.seed} and data.split_seed {params.data.split_seed}"
        raise UserError(
            f"the current params diverge with {pair}: there is nothing to compare with; search around others"
        )
    return value


def keep_verdicts(path: Path, found: Sequence[Verdict], about: Mapping[str, Any]) -> None:
    """Write them, and what they are ``about``, for those who come later."""
    write_json(path, {**about, "verdicts": [asdict(verdict) for verdict in found]})


def kept_verdicts(path: Path, sweep: str) -> list[Verdict]:
    """Those that were written of the sweep with this key; none where nobody confirmed that one, but another before.

    Raises UserError where the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        kept = json.loads(path.read_bytes())
        return [Verdict(**verdict) for verdict in kept["verdicts"]] if kept.get("sweep") == sweep else []
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: damaged; move it away, and `lenet5 sweep confirm` makes it anew") from None


def verdict_rows(found: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table."""
    header = ["trial", "gain claimed", "gain kept", "95 % interval", "p (Holm)", "better than the current params"]
    return header, [[str(one.trial), f"{one.claimed:+.4f}", *_kept(one)] for one in found]


def _kept(one: Verdict) -> list[str]:
    if one.diverged:
        return ["-", "-", "-", f"no: diverged on {one.diverged} of {one.pairs}"]
    answer = "yes" if one.confirmed else "not by more than luck"
    return [f"{one.gain:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", told_p(one.p).removeprefix("p = "), answer]


def _pairs(who: Mapping[str, Params], seeds: int) -> list[tuple[int, int]]:
    """Seed and split of all trials, and after them the fresh ones."""
    trial = next(params for name, params in who.items() if name != CURRENT)
    used = trial.train.seed, trial.data.split_seed
    return [used, *fresh_pairs(*used, seeds)]


def _on(params: Params, seed: int, split: int) -> Params:
    train = params.train.model_copy(update={"seed": seed})
    data = params.data.model_copy(update={"split_seed": split})
    return params.model_copy(update={"train": train, "data": data})
