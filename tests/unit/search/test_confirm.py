import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lenet5.commands.confirmation import how_trained, recipe, recipe_text
from lenet5.errors import UserError
from lenet5.params import Params
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
from lenet5.search.engine import Ended, Event, Failed, Gained, Job, Lost
from lenet5.search.luck import paired_gain
from lenet5.search.plan import Plan
from lenet5.search.study import Study
from lenet5.search.trials import Trial

from .conftest import row
from .test_driver import Stage

Plans = Callable[..., Plan]
SEEDS = 4


def trial(number: int, lr: float, value: float) -> Trial:
    return Trial(number, {"train.lr": lr, "model.activation": "tanh"}, "complete", "", value, [], 0, 1)


TRIALS = [trial(0, 0.01, 0.5), trial(1, 0.02, 0.3), trial(2, 0.05, 0.4)]


def loss_of(params: Params) -> float:
    """What a training gives in these tests: trial 1 was lucky, trial 2 is better than the current params (lr 0.1)."""
    better = {0.02: 0.0, 0.05: 0.2}.get(params.train.lr, 0.0)
    return 0.5 - better + 0.01 * (params.train.seed % 3) + 0.003 * (params.data.split_seed % 2) * params.train.lr


def plays(job: Job) -> list[Event]:
    value = loss_of(Params.model_validate(job.params))
    return [Gained(job.key, row(1, 9.0)), Gained(job.key, row(2, value)), Ended(job.key)]


@pytest.fixture
def values(tmp_path: Path) -> Callable[..., Values]:
    return lambda code="1": Values(tmp_path / "values.json", {"code": code})


def test_everybody_is_trained_on_the_same_fresh_pairs_and_the_current_params_as_the_trials_too(
    plan: Plans, base: Params
) -> None:
    who = candidates(TRIALS, plan(), base, top=2)
    assert list(who) == ["current", "1", "2"]
    assert who["current"] == base
    wanted = list(trainings(who, SEEDS))
    assert len({name for name, _ in wanted}) == len(wanted) == 1 + 3 * SEEDS
    used = [(params.train.seed, params.data.split_seed) for _, params in wanted]
    assert used[0] == (base.train.seed, base.data.split_seed)
    assert sorted(used[1:]) == sorted([(step, step) for step in range(1, SEEDS + 1)] * 3)


def test_the_current_params_are_measured_on_the_images_that_the_trials_were(plan: Plans, base: Params) -> None:
    fixed = {"data.validation_size": 7, "train.epochs": 8}
    current = candidates(TRIALS, plan(fixed=fixed), base, top=1)["current"]
    assert (current.data.validation_size, current.train) == (7, base.train)


def test_a_lucky_trial_keeps_nothing_and_a_better_one_is_confirmed(
    plan: Plans, base: Params, values: Callable[..., Values]
) -> None:
    who = candidates(TRIALS, plan(), base, top=2)
    train_all(Stage(plays, 3), list(trainings(who, SEEDS)), "validation_loss", values(), lambda _: None)
    better, lucky = verdicts(TRIALS, who, "validation_loss", 0.05, SEEDS, values())
    assert (better.trial, lucky.trial) == (2, 1)
    assert better.confirmed
    assert not lucky.confirmed
    assert better.gain == pytest.approx(0.2, abs=0.01)
    assert better.low < better.gain < better.high
    assert lucky.claimed == pytest.approx(0.2, abs=0.01)
    assert lucky.gain == pytest.approx(0.0, abs=0.01)


def test_what_was_trained_is_not_trained_again_unless_the_code_is_another(
    plan: Plans, base: Params, values: Callable[..., Values]
) -> None:
    wanted = list(trainings(candidates(TRIALS, plan(), base, top=1), SEEDS))
    broken = Stage(lambda job: [Failed(job.key, "no data", hopeless=False)] if "seed 3" in job.key else plays(job))
    with pytest.raises(UserError, match="trial current with seed 3 and split 3: no data"):
        train_all(broken, wanted, "validation_loss", values(), lambda _: None)
    again, said = Stage(plays), list[str]()
    train_all(again, wanted, "validation_loss", values(), said.append)
    assert len(broken.started) + len(again.started) == len(wanted) + 1
    assert said[-1].startswith(f"{len(wanted)} of {len(wanted)}: trial ")
    once_more = Stage(plays)
    train_all(once_more, wanted, "validation_loss", values(), lambda _: None)
    assert once_more.started == []
    train_all(once_more, wanted, "validation_loss", values("2"), lambda _: None)
    assert len(once_more.started) == len(wanted)


def test_one_that_loses_its_worker_is_trained_again_and_not_for_ever(
    plan: Plans, base: Params, values: Callable[..., Values]
) -> None:
    wanted = list(trainings(candidates(TRIALS, plan(), base, top=1), 2))
    lost = Stage(lambda job: [Lost(job.key, "killed")])
    with pytest.raises(UserError, match="killed"):
        train_all(lost, wanted, "validation_loss", values(), lambda _: None)
    assert len(lost.started) == 3


def test_one_that_diverges_is_not_confirmed_and_the_others_are_judged(
    plan: Plans, base: Params, values: Callable[..., Values]
) -> None:
    def diverges(job: Job) -> list[Event]:
        return [Failed(job.key, "nan", hopeless=True)] if "2 with seed 3" in job.key else plays(job)

    who, said = candidates(TRIALS, plan(), base, top=2), list[str]()
    train_all(Stage(diverges, 3), list(trainings(who, SEEDS)), "validation_loss", values(), said.append)
    assert any(line.endswith("trial 2 with seed 3 and split 3: nan") for line in said)
    lucky, diverged = verdicts(TRIALS, who, "validation_loss", 0.05, SEEDS, values())
    assert (lucky.trial, lucky.diverged, diverged.trial, diverged.diverged) == (1, 0, 2, 1)
    assert not diverged.confirmed
    _, rows = verdict_rows([lucky, diverged])
    assert [row[-1] for row in rows] == ["not by more than luck", f"no: diverged on 1 of {SEEDS}"]


def test_current_params_that_diverge_are_told(plan: Plans, base: Params, values: Callable[..., Values]) -> None:
    def diverges(job: Job) -> list[Event]:
        return [Failed(job.key, "nan", hopeless=True)] if "current with seed 3" in job.key else plays(job)

    who = candidates(TRIALS, plan(), base, top=1)
    train_all(Stage(diverges), list(trainings(who, SEEDS)), "validation_loss", values(), lambda _: None)
    with pytest.raises(UserError, match=r"the current params diverge with train\.seed 3 and data\.split_seed 3"):
        verdicts(TRIALS, who, "validation_loss", 0.05, SEEDS, values())


def test_a_confirmed_trial_stands_before_one_whose_gain_is_larger_and_may_be_luck(
    plan: Plans, base: Params, values: Callable[..., Values]
) -> None:
    def noisy(job: Job) -> list[Event]:
        params = Params.model_validate(job.params)
        gain = {0.02: 0.02 + 0.2 * (-1) ** params.train.seed, 0.05: 0.01 + 1e-5 * params.train.seed}
        return [Gained(job.key, row(1, 0.5 - gain.get(params.train.lr, 0.0))), Ended(job.key)]

    who = candidates(TRIALS, plan(), base, top=2)
    train_all(Stage(noisy), list(trainings(who, SEEDS)), "validation_loss", values(), lambda _: None)
    sure, noise = verdicts(TRIALS, who, "validation_loss", 0.05, SEEDS, values())
    assert (sure.trial, sure.confirmed, noise.trial, noise.confirmed) == (2, True, 1, False)
    assert noise.gain > sure.gain


def test_trials_that_tried_the_same_are_one_and_what_is_trained_twice_is_trained_once(
    plan: Plans, base: Params, values: Callable[..., Values]
) -> None:
    same = [trial(0, 0.05, 0.3), trial(1, 0.05, 0.3), trial(2, 0.05, 0.3), trial(3, 0.02, 0.4)]
    who = candidates(same, plan(), base, top=2)
    assert list(who) == ["current", "0", "3"]
    stage, said = Stage(plays), list[str]()
    twice = {**who, "3": who["current"]}
    train_all(stage, list(trainings(twice, SEEDS)), "validation_loss", values(), said.append)
    assert len(stage.started) == 1 + 2 * SEEDS
    assert said[-1].startswith(f"{1 + 3 * SEEDS} of {1 + 3 * SEEDS}: ")


def test_no_complete_trial_is_told(plan: Plans, base: Params) -> None:
    with pytest.raises(UserError, match="no trial of this sweep is complete yet"):
        candidates([], plan(), base, top=3)


def test_a_trial_that_chose_its_epoch_by_the_images_that_measure_it_is_not_held_against_last_epochs(
    plan: Plans, base: Params
) -> None:
    def of(weights: str) -> Params:
        return base.model_copy(update={"train": base.train.model_copy(update={"weights": weights})})

    chooses = plan(fixed={"train.epochs": 8, "train.weights": "best_validation"})
    with pytest.raises(UserError, match=r"^trial 1 kept the epoch that is best on the images that measure it"):
        candidates(TRIALS, chooses, of("last"), top=1)
    assert list(candidates(TRIALS, chooses, of("best_validation"), top=1)) == ["current", "1"]
    lasts = plan(fixed={"train.epochs": 8, "train.weights": "last"})
    assert list(candidates(TRIALS, lasts, of("best_validation"), top=1)) == ["current", "1"]


WINNER = Verdict(trial=2, claimed=0.3, gain=0.2, low=0.1, high=0.3, p=0.004, pairs=8, alpha=0.05)


def test_verdicts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    assert kept_verdicts(path, "a key") == []
    keep_verdicts(path, [WINNER], {"trials": 3, "sweep": "a key"})
    assert kept_verdicts(path, "a key") == [WINNER]
    assert kept_verdicts(path, "another") == []  # a sweep of the same name, begun anew
    path.write_text("{")
    with pytest.raises(UserError, match="damaged; move it away"):
        kept_verdicts(path, "a key")


def test_the_time_of_a_confirmation_is_kept_with_it(
    plan: Plans, base: Params, values: Callable[..., Values], tmp_path: Path
) -> None:
    who = candidates(TRIALS, plan(), base, top=1)
    train_all(Stage(plays, 3), list(trainings(who, SEEDS)), "validation_loss", values(), lambda _: None)
    began = time.time_ns() // 1_000_000
    (found,) = verdicts(TRIALS, who, "validation_loss", 0.05, SEEDS, values())
    keep_verdicts(tmp_path / "verdicts.json", [found], {"sweep": "a key"})
    (kept,) = kept_verdicts(tmp_path / "verdicts.json", "a key")
    assert began <= kept.judged <= time.time_ns() // 1_000_000


def test_no_p_is_called_0() -> None:
    equal_gains = replace(WINNER, p=paired_gain([0.1] * 8, 0.1).p)
    _, ((*_, told, _),) = verdict_rows([equal_gains])
    assert told == "p < 2e-308"
    about = {"commit": "", "trials": 60, "objective": "validation_loss", "params": {}}
    assert "\n# p < 2e-308 (Holm), on 8 pairs" in recipe_text("wide", equal_gains, about)
    assert verdict_rows([WINNER])[1][0][-2] == "0.004"


def test_the_recipe_holds_what_was_fixed_tried_and_neither_but_no_seed(plan: Plans, base: Params) -> None:
    fixed = {"train.augmentation.shift": 2, "train.seed": 5, "data.validation_size": 7}
    held = how_trained(candidates(TRIALS, plan(fixed=fixed), base, top=1)["1"])
    assert held["train"]["augmentation"]["shift"] == 2
    assert (held["train"]["lr"], held["model"]["activation"]) == (0.02, "tanh")
    assert held["train"]["batch_size"] == base.train.batch_size
    assert set(held) == {"model", "train"}
    assert not {"seed", "device", "engine", "deterministic"} & set(held["train"])


def test_the_recipe_says_where_it_is_from() -> None:
    about = {
        "commit": "0123456789abcdef", "trials": 60, "objective": "validation_loss",
        "params": {"model": {"activation": "tanh"}, "train": {"lr": 0.05, "augmentation": {"shift": 2}}},
    }  # fmt: skip
    text = recipe_text("wide", WINNER, about)
    assert yaml.safe_load(text) == about["params"]
    head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert head == (
        "Trial 2 of 60 of the sweep wide, commit 0123456789ab. Better than params.yaml was in validation loss by "
        "0.2000, 95 % interval 0.1000 to 0.3000, p = 0.004 (Holm), on 8 pairs of seed and split that no trial used. "
        "Chosen on the validation images alone."
    )


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (None, "its winner may have been lucky; `lenet5 sweep confirm wide` tells"),
        ({"p": 0.2}, "no trial is better than the current params by more than luck"),
        ({"gain": -0.2}, "no trial is better than the current params by more than luck"),
    ],
)
def test_no_recipe_is_written_of_a_winner_that_is_not_confirmed(
    workspace: Path, search: Callable[..., Study], journal: Path, verdict: dict[str, Any] | None, told: str
) -> None:
    study = search()
    for _ in range(3):
        study.end(study.ask(), "complete", "", 1, 0.5)
    (workspace / ".lenet5/sweeps").mkdir(parents=True)
    (workspace / ".lenet5/sweeps/wide.journal").write_bytes(journal.read_bytes())
    kept = workspace / ".lenet5/sweeps/wide.confirmed.json"
    about = {
        "sweep": study.key, "commit": "", "trials": 3, "objective": "validation_loss",
        "params": {"train": {"lr": 0.05}},
    }  # fmt: skip
    if verdict is not None:
        keep_verdicts(kept, [Verdict(**{**vars(WINNER), **verdict})], about)
    with pytest.raises(UserError, match=told):
        recipe("wide")
    keep_verdicts(kept, [WINNER], {**about, "sweep": "begun before it was moved away"})
    with pytest.raises(UserError, match="its winner may have been lucky"):
        recipe("wide")
    assert not (workspace / "recipes").exists()
    keep_verdicts(kept, [WINNER], about)
    recipe("wide")
    assert "lr:" in (workspace / "recipes/wide.yaml").read_text()
    (workspace / "recipes/wide.yaml").write_text("a person's own")
    with pytest.raises(UserError, match="is there already"):
        recipe("wide")
