"""``lenet5 sweep confirm`` and ``recipe``: whether a sweep's winner was lucky, and a recipe of one that was not."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lenet5.commands.sweep import begun, claimed, engine_of, here, mirror_of, place, refuse_another, verdicts_of
from lenet5.errors import UserError
from lenet5.files import read_json, write_bytes
from lenet5.params import Params, load_params
from lenet5.record.family import Mirror, Status
from lenet5.record.lineage import read_code
from lenet5.record.promotion import told_p
from lenet5.search.account import family_of
from lenet5.search.board import markdown, table
from lenet5.search.confirm import (
    Values,
    Verdict,
    candidates,
    keep_verdicts,
    kept_verdicts,
    train_all,
    trainings,
    verdict_rows,
    verdicts,
)
from lenet5.search.origin import code_of
from lenet5.search.plan import SEARCHED, Plan
from lenet5.search.ray_settings import refuse_share
from lenet5.search.study import Study, read_study
from lenet5.workspace import PARAMS_FILE, PIPELINE_FILE

RECIPES, TABLES = Path("recipes"), Path("sweeps")
CONFIRMATION = "confirmation.md"
_LEAST_PAIRS = 2
_LUCK_AND_MACHINE = {"seed", "deterministic", "device", "engine"}


def confirm(name: str, top: int, seeds: int, on: str | None, gpus: float) -> int:
    """Train the ``top`` best trials and the current params on ``seeds`` fresh pairs of seed and split."""
    if top < 1 or seeds < _LEAST_PAIRS:
        raise UserError(f"--top {top} --seeds {seeds}: one trial and {_LEAST_PAIRS} pairs of seed and split at least")
    refuse_share(gpus, on)
    base, code = load_params(PARAMS_FILE), read_code()
    begun(name)
    with claimed(name) as journal:
        study, plan = read_study(journal, name)
        refuse_another(study, name, plan, base)
        trials = study.trials()
        on_device = here(base, on, gpus)
        who = candidates(trials, plan, on_device, top)
        wanted = list(trainings(who, seeds))
        again = f"lenet5 sweep confirm {name} --top {top} --seeds {seeds}{place(on, gpus)}"
        mirror = mirror_of(on_device, code, again)
        what = code_of(PIPELINE_FILE) | {"objective": plan.objective}
        values = Values(journal.with_suffix(".values.json"), what)
        with closing(engine_of(plan, list(who.values()), on_device, on, gpus)) as engine:
            train_all(engine, wanted, plan.objective, values, partial(print, flush=True))
        found = verdicts(trials, who, plan.objective, base.register_.alpha, seeds, values)
        about = {
            "sweep": study.key, "commit": code.commit, "trials": len(trials), "objective": plan.objective,
            "params": how_trained(who[str(found[0].trial)]),
        }  # fmt: skip
        keep_verdicts(verdicts_of(journal), found, about)
        header, rows = verdict_rows(found)
        write_bytes(TABLES / f"{name}.md", _text(name, found, about).encode())
        Console(markup=False, highlight=False).print(table(f"on {seeds} fresh pairs of seed and split", header, rows))
        _record(study, name, plan, on_device, found, mirror)
    return 0


def recipe(name: str) -> int:
    """Write recipes/NAME.yaml with how the confirmed winner was trained. Raises UserError where none is confirmed."""
    journal = begun(name)
    study, _ = read_study(journal, name)
    found = kept_verdicts(verdicts_of(journal), study.key)
    if not found:
        raise UserError(f"sweep {name}: its winner may have been lucky; `lenet5 sweep confirm {name}` tells")
    if not found[0].confirmed:
        raise UserError(f"sweep {name}: no trial is better than the current params by more than luck; no recipe")
    content = recipe_text(name, found[0], read_json(verdicts_of(journal)))
    target = RECIPES / f"{name}.yaml"
    if target.exists() and target.read_text(encoding="utf-8") != content:
        raise UserError(f"{target}: is there already, and another; move it away, then repeat")
    write_bytes(target, content.encode())
    print(f"{target} written; `lenet5 recipe {target}` sets it in {PARAMS_FILE}")
    return 0


def recipe_text(name: str, winner: Verdict, about: Mapping[str, Any]) -> str:
    """The recipe of a trial; its head says where it comes from, and what it is worth."""
    head = (
        f"# Trial {winner.trial} of {about['trials']} of the sweep {name}, commit "
        f"{about['commit'][:12] or 'unknown'}.\n"
        f"# Better than params.yaml was in {_objective(about)} by {winner.gain:.4f}, 95 % interval {winner.low:.4f} to "
        f"{winner.high:.4f},\n# {told_p(winner.p)} (Holm), on {winner.pairs} pairs of seed and split that no trial "
        "used. Chosen on the validation images alone.\n"
    )
    return head + yaml.safe_dump(about["params"], sort_keys=False)


def how_trained(params: Params) -> dict[str, Any]:
    """All that makes the weights what they are, but for luck and the machine: it may be set in any params.yaml."""
    return params.model_dump(by_alias=True, include=set(SEARCHED), exclude={"train": _LUCK_AND_MACHINE})


def _text(name: str, found: Sequence[Verdict], about: Mapping[str, Any]) -> str:
    return (
        f"# Sweep {name}: is its winner better, or was it lucky?\n\n"
        f"The best of {about['trials']} trials and the params of `params.yaml`, trained on {found[0].pairs} pairs of "
        f"seed and split that no trial used. Gains are in {_objective(about)}, positive where the trial is better: "
        "what the sweep claimed, and what is left of it. The interval corrects for splits that overlap, p for several "
        f"comparisons; up to {found[0].alpha:g} (`register.alpha`) a gain is more than luck.\n\n"
        f"{markdown(*verdict_rows(found))}"
    )


def _objective(about: Mapping[str, Any]) -> str:
    return str(about["objective"]).replace("_", " ")


def _record(study: Study, name: str, plan: Plan, base: Params, found: Sequence[Verdict], mirror: Mirror) -> None:
    status: Status = "FINISHED" if sum(trial.ended is not None for trial in study.trials()) >= plan.trials else "KILLED"
    with tempfile.TemporaryDirectory() as folder, mirror:
        write_bytes(Path(folder, CONFIRMATION), (TABLES / f"{name}.md").read_bytes())
        mirror.show(family_of(study, name, plan, base, [], status, Path(folder), found, {}))
