"""Whether a winner is better, or was lucky: the same trainings from fresh seeds and splits, compared in pairs."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gain:
    """How much better one recipe is than another, on average; 95 % interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def paired_gain(gains: Sequence[float], held_out: float, confidence: float = 0.95) -> Gain:
    """The gain over pairs of trainings, each pair with a seed and a split of its own; two pairs at least.

    ``held_out`` is the share of the images that choose. The splits overlap, so the gains vary less than those of
    independent images would: the variance is corrected (Nadeau and Bengio, "Inference for the Generalization Error",
    2003).
    """
    import numpy as np
    from scipy.stats import t

    count, mean = len(gains), float(np.mean(gains))
    error = float(np.sqrt(np.var(gains, ddof=1) * (1 / count + held_out / (1 - held_out))))
    if error == 0:
        return Gain(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    margin = float(t.ppf((1 + confidence) / 2, count - 1)) * error
    return Gain(mean, mean - margin, mean + margin, float(2 * t.sf(abs(mean) / error, count - 1)))


def fresh_pairs(seed: int, split_seed: int, count: int, largest: int) -> list[tuple[int, int]]:
    """``count`` pairs of train.seed and data.split_seed that no trial used, all of whose were (seed, split_seed)."""
    size = largest + 1
    return [((seed + step) % size, (split_seed + step) % size) for step in range(1, count + 1)]
