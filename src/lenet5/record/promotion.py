"""Which model version becomes champion, and why."""

from dataclasses import dataclass
from sys import float_info

import pandas as pd

from lenet5.params import RegisterParams

CHAMPION, CHALLENGER, REJECTED = "champion", "challenger", "rejected"


@dataclass(frozen=True)
class Decision:
    """What a model became when it was registered: champion, challenger or rejected; the rest is the evidence.

    ``candidate_only`` and ``champion_only`` count the test images that only one of the two classifies rightly.
    """

    became: str
    reason: str
    accuracy: float
    champion_accuracy: float | None = None
    candidate_only: int | None = None
    champion_only: int | None = None
    p_value: float | None = None


def decide(candidate: pd.DataFrame, gap: float, champion: pd.DataFrame | None, limits: RegisterParams) -> Decision:
    """Decide about a candidate from its test predictions and accuracy gap, against the champion's predictions.

    Within the limits, the first model becomes champion; a later one only if it classifies more of the same images
    rightly and McNemar's exact test (1947; two-sided, on the discordant images) gives p <= ``limits.alpha``.
    Raises ValueError where the two tables are not of the same images.
    """
    right = candidate["true"] == candidate["predicted"]
    accuracy = float(right.mean())
    if accuracy < limits.min_test_accuracy:
        reason = f"test accuracy {accuracy:.4f} is below register.min_test_accuracy {limits.min_test_accuracy:g}"
        return Decision(REJECTED, reason, accuracy)
    if gap > limits.max_accuracy_gap:
        reason = f"accuracy gap {gap:.4f} is above register.max_accuracy_gap {limits.max_accuracy_gap:g}"
        return Decision(REJECTED, reason, accuracy)
    if champion is None:
        return Decision(CHAMPION, "there was no champion, and it is within the limits", accuracy)
    if not candidate["true"].equals(champion["true"]):
        raise ValueError("the champion was measured on other test images")
    champion_right = champion["true"] == champion["predicted"]
    candidate_only, champion_only = discordant(candidate, champion)
    p_value = mcnemar(candidate_only, champion_only)
    better = candidate_only > champion_only and p_value <= limits.alpha
    reason = (
        f"right on {candidate_only} test images that the champion misses, wrong on {champion_only} that it knows: "
        f"{told_p(p_value)}, register.alpha {limits.alpha:g}"
    )
    return Decision(
        became=CHAMPION if better else CHALLENGER,
        reason=reason,
        accuracy=accuracy,
        champion_accuracy=float(champion_right.mean()),
        candidate_only=candidate_only,
        champion_only=champion_only,
        p_value=p_value,
    )


def discordant(first: pd.DataFrame, second: pd.DataFrame) -> tuple[int, int]:
    """How many of the same images only the first of two models classifies rightly, and only the second."""
    right, other = (table["true"] == table["predicted"] for table in (first, second))
    return int((right & ~other).sum()), int((other & ~right).sum())


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p-value of the hypothesis that both models are right equally often."""
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


def told_p(p_value: float) -> str:
    """A p-value as a sentence has it; what a float cannot tell from 0 is not called 0."""
    return f"p = {p_value:.2g}" if p_value else f"p < {float_info.min:.0e}"
