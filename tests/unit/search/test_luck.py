from collections.abc import Callable

import numpy as np
import pytest

from lenet5.record.promotion import holm
from lenet5.search.luck import fresh_pairs, paired_gain

HELD_OUT = 5_000 / 60_000
ALPHA, PAIRS, CANDIDATES = 0.05, 8, 3


def test_a_gain_has_its_mean_inside_its_interval_and_the_interval_is_wider_than_students() -> None:
    gains = [0.01, 0.02, 0.03, 0.04]
    gain = paired_gain(gains, HELD_OUT)
    assert gain.mean == pytest.approx(0.025)
    assert gain.low < gain.mean < gain.high
    students = paired_gain(gains, 0.0)
    # t(3, 0.975) = 3.1824, sample deviation 0.012910, and Nadeau and Bengio's factor (1/4 + 1/11) for 5,000 of 60,000
    assert students.high - students.mean == pytest.approx(3.1824 * 0.012910 / 2, rel=1e-3)
    assert gain.high - gain.mean == pytest.approx(3.1824 * 0.012910 * (1 / 4 + 1 / 11) ** 0.5, rel=1e-3)
    assert gain.p > students.p


def test_worse_is_a_negative_gain_with_the_same_p() -> None:
    gains = [0.01, 0.02, 0.03, 0.04]
    better, worse = paired_gain(gains, HELD_OUT), paired_gain([-one for one in gains], HELD_OUT)
    assert (worse.mean, worse.p) == (pytest.approx(-better.mean), pytest.approx(better.p))


def test_equal_trainings_show_no_gain() -> None:
    gain = paired_gain([0.0] * 4, HELD_OUT)
    assert (gain.mean, gain.p) == (0.0, 1.0)


def test_no_fresh_pair_was_used_and_all_differ() -> None:
    pairs = fresh_pairs(3, 2**31 - 2, 5, 2**31 - 1)
    assert len(set(pairs)) == 5
    assert all(seed != 3 and split != 2**31 - 2 for seed, split in pairs)
    assert all(0 <= one < 2**31 for pair in pairs for one in pair)


def false_confirmations(runs: int, correlated: float, held_out: float) -> float:
    """The share of sweeps without any better trial in which at least one of three is confirmed all the same.

    Values of all recipes on one pair share a part, as images and seed do; those of one recipe share the part
    ``correlated`` of their variance, as trainings on overlapping splits do. The current params are one of them.
    """
    generator = np.random.default_rng(0)
    confirmed = 0
    for _ in range(runs):
        shared = generator.normal(size=PAIRS)
        own = generator.normal(size=(CANDIDATES + 1, PAIRS)) * (1 - correlated) ** 0.5
        own += generator.normal(size=(CANDIDATES + 1, 1)) * correlated**0.5
        current, *others = shared + own
        gains = [paired_gain(list(current - other), held_out) for other in others]
        adjusted = holm([gain.p for gain in gains])
        confirmed += any(p <= ALPHA and gain.mean > 0 for p, gain in zip(adjusted, gains, strict=True))
    return confirmed / runs


def test_where_nothing_is_better_something_is_confirmed_at_most_as_often_as_alpha_says(
    report: Callable[[str], None],
) -> None:
    rates = [false_confirmations(2000, correlated, HELD_OUT) for correlated in (0.0, HELD_OUT)]
    report(f"no trial better: one of {CANDIDATES} confirmed in {rates[0]:.4f} and {rates[1]:.4f} of 2000 sweeps")
    assert max(rates) <= ALPHA


def test_without_the_correction_overlapping_splits_would_confirm_too_much() -> None:
    assert false_confirmations(500, HELD_OUT, 0.0) > false_confirmations(500, HELD_OUT, HELD_OUT)
