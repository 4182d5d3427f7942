from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from lenet5.params import Params
from lenet5.search.confirm import Values, candidates, verdicts
from lenet5.search.luck import fresh_pairs, holm, paired_gain
from lenet5.search.plan import Plan, trial_params
from lenet5.search.trials import Trial

HELD_OUT = 5_000  # of 60,000
ALPHA, PAIRS, CANDIDATES, TRIALS = 0.05, 8, 3, 20


def test_a_gain_has_its_mean_inside_its_interval_and_the_interval_is_wider_than_students() -> None:
    gains = [0.01, 0.02, 0.03, 0.04]
    gain = paired_gain(gains, HELD_OUT / 60_000)
    assert gain.mean == pytest.approx(0.025)
    assert gain.low < gain.mean < gain.high
    students = paired_gain(gains, 0.0)
    # t(3, 0.975) = 3.1824, sample deviation 0.012910, and Nadeau and Bengio's factor (1/4 + 1/11) for 5,000 of 60,000
    assert students.high - students.mean == pytest.approx(3.1824 * 0.012910 / 2, rel=1e-3)
    assert gain.high - gain.mean == pytest.approx(3.1824 * 0.012910 * (1 / 4 + 1 / 11) ** 0.5, rel=1e-3)
    assert gain.p > students.p


def test_worse_is_a_negative_gain_with_the_same_p() -> None:
    gains = [0.01, 0.02, 0.03, 0.04]
    better, worse = (paired_gain(those, HELD_OUT / 60_000) for those in (gains, [-one for one in gains]))
    assert (worse.mean, worse.p) == (pytest.approx(-better.mean), pytest.approx(better.p))


def test_equal_trainings_show_no_gain() -> None:
    gain = paired_gain([0.0] * 4, HELD_OUT / 60_000)
    assert (gain.mean, gain.p) == (0.0, 1.0)


def test_no_fresh_pair_was_used_and_all_differ() -> None:
    pairs = fresh_pairs(3, 2**31 - 2, 5)
    assert len(set(pairs)) == 5
    assert all(seed != 3 and split != 2**31 - 2 for seed, split in pairs)
    assert all(0 <= one < 2**31 for pair in pairs for one in pair)


class Drawn:
    """Objectives as trainings would give them where no recipe is better than another.

    All recipes on one pair of seed and split share a part, as images and seed do; those of one recipe share the part
    ``correlated`` of their variance, as trainings on overlapping splits do.
    """

    def __init__(self, generator: np.random.Generator, correlated: float) -> None:
        self._generator, self._correlated = generator, correlated
        self._of_pair: dict[int, float] = defaultdict(generator.normal)
        self._of_recipe: dict[float, float] = defaultdict(generator.normal)

    def __getitem__(self, params: Params) -> float:
        own = self._generator.normal() * (1 - self._correlated) ** 0.5
        of_recipe = self._of_recipe[params.train.lr] * self._correlated**0.5
        return 10 + self._of_pair[params.train.seed] + of_recipe + own


def false_confirmations(runs: int, correlated: float, held_out: int, plan: Plan, params: Params) -> float:
    """The share of sweeps without any better trial in which one of the best three is confirmed all the same."""
    base = params.model_copy(update={"data": params.data.model_copy(update={"validation_size": held_out})})
    generator = np.random.default_rng(0)
    confirmed = 0
    for _ in range(runs):
        drawn = Drawn(generator, correlated)
        found = [drawn[trial_params(plan, base, tried(number))] for number in range(TRIALS)]
        trials = [Trial(one, tried(one), "complete", "", value, [], 0, 1) for one, value in enumerate(found)]
        who = candidates(trials, plan, base, CANDIDATES)
        told = verdicts(trials, who, "validation_loss", ALPHA, PAIRS, cast("Values", drawn))
        confirmed += any(verdict.confirmed for verdict in told)
    return confirmed / runs


def tried(number: int) -> dict[str, Any]:
    return {"train.lr": 0.001 + number / 1000, "model.activation": "tanh"}


def test_where_nothing_is_better_something_is_confirmed_at_most_as_often_as_alpha_says(
    plan: Callable[..., Plan], base: Params, report: Callable[[str], None]
) -> None:
    rates = [false_confirmations(2000, correlated, HELD_OUT, plan(), base) for correlated in (0.0, HELD_OUT / 60_000)]
    report(f"no trial better: one of {CANDIDATES} confirmed in {rates[0]:.4f} and {rates[1]:.4f} of 2000 sweeps")
    assert max(rates) <= ALPHA


def test_without_the_correction_overlapping_splits_would_confirm_too_much(
    plan: Callable[..., Plan], base: Params
) -> None:
    overlapping = HELD_OUT / 60_000
    rates = [false_confirmations(500, overlapping, held_out, plan(), base) for held_out in (1, HELD_OUT)]
    assert rates[0] > rates[1]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
