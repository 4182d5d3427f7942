"""Whether a winner is better, or was lucky: the same trainings from fresh seeds and splits, compared in pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lenet5.params import LARGEST_SEED

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation, and Student's interval around the mean, of one figure over the seeds."""

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """How much better one recipe is than another, on average; 95 % interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def spread(values: Sequence[float]) -> Spread:
    """Of two or more values of one figure."""
    count, mean, deviation = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    margin = _margin(deviation / count**0.5, count)
    return Spread(mean, deviation, mean - margin, mean + margin)


def paired_gain(gains: Sequence[float], held_out: float) -> Gain:
    """The gain over pairs of trainings, each pair with a seed and a split of its own; two pairs at least.

    ``held_out`` is the share of the images that choose. The splits overlap, so the gains vary less than those of
    independent images would: the variance is corrected (Nadeau and Bengio, "Inference for the Generalization Error",
    2003).
    """
    from scipy.stats import t

    count, mean = len(gains), float(np.mean(gains))
    error = float(np.sqrt(np.var(gains, ddof=1) * (1 / count + held_out / (1 - held_out))))
    if error == 0:
        return Gain(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    margin = _margin(error, count)
    return Gain(mean, mean - margin, mean + margin, float(2 * t.sf(abs(mean) / error, count - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """``p_values`` of several tests, adjusted so that none is small by their number alone (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    times = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(times * np.asarray(p_values)[order]).clip(max=1)
    return [float(value) for value in adjusted]


def fresh_pairs(seed: int, split_seed: int, count: int) -> list[tuple[int, int]]:
    """``count`` pairs of train.seed and data.split_seed that no trial used, all of whose were (seed, split_seed)."""
    size = LARGEST_SEED + 1
    return [((seed + step) % size, (split_seed + step) % size) for step in range(1, count + 1)]


def _margin(error: float, count: int) -> float:
    """Half of Student's interval around a mean of ``count`` values whose standard error is ``error``."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
