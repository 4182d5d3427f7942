from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lenet5.params import Params, RegisterParams
from lenet5.record import promotion
from lenet5.record.promotion import decide, mcnemar, told_p


@pytest.fixture(scope="session")
def limits(params: Params) -> RegisterParams:
    return RegisterParams.model_validate(params.register_.model_dump() | {"min_test_accuracy": 0.5, "alpha": 0.05})


def predictions(right: Any) -> pd.DataFrame:
    """Of images whose class is 1; a model that is not right says 0."""
    predicted = np.asarray(right, dtype=int)
    return pd.DataFrame({"true": np.ones_like(predicted), "predicted": predicted})


def pair(both: int, candidate_only: int, champion_only: int, neither: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    counts = [both, candidate_only, champion_only, neither]
    return predictions(np.repeat([1, 1, 0, 0], counts)), predictions(np.repeat([1, 0, 1, 0], counts))


def test_the_first_acceptable_model_becomes_champion(limits: RegisterParams) -> None:
    decision = decide(predictions([1, 1, 1, 0]), 0.0, None, limits)
    assert decision.became == "champion"
    assert decision.accuracy == 0.75
    assert decision.p_value is None


@pytest.mark.parametrize("first", [True, False])
def test_a_model_below_the_least_accuracy_is_rejected(limits: RegisterParams, first: bool) -> None:
    candidate, champion = pair(40, 9, 0, 51)
    decision = decide(candidate, 0.0, None if first else champion, limits)
    assert decision.became == "rejected"
    assert "0.4900 is below register.min_test_accuracy 0.5" in decision.reason


@pytest.mark.parametrize("first", [True, False])
def test_a_model_with_too_wide_a_gap_is_rejected(limits: RegisterParams, first: bool) -> None:
    candidate, champion = pair(80, 20, 0)
    decision = decide(candidate, 0.051, None if first else champion, limits)
    assert decision.became == "rejected"
    assert "0.0510 is above register.max_accuracy_gap 0.05" in decision.reason


def test_the_limits_themselves_are_acceptable(limits: RegisterParams) -> None:
    assert decide(predictions([1, 0]), 0.05, None, limits).became == "champion"


@pytest.mark.parametrize(
    ("candidate_only", "champion_only", "alias"),
    [
        (30, 10, "champion"),
        (6, 0, "champion"),
        (5, 0, "challenger"),
        (12, 8, "challenger"),
        (10, 10, "challenger"),
        (0, 0, "challenger"),
        (8, 12, "challenger"),
        (10, 30, "challenger"),
    ],
    ids=["better", "just better", "not quite", "luck", "equal", "the same", "a little worse", "much worse"],
)
def test_only_a_model_that_is_better_beyond_doubt_replaces_the_champion(
    limits: RegisterParams, candidate_only: int, champion_only: int, alias: str
) -> None:
    candidate, champion = pair(70, candidate_only, champion_only, 5)
    decision = decide(candidate, 0.0, champion, limits)
    assert decision.became == alias
    assert (decision.candidate_only, decision.champion_only) == (candidate_only, champion_only)
    assert decision.accuracy == (70 + candidate_only) / len(candidate)
    assert decision.champion_accuracy == (70 + champion_only) / len(candidate)
    assert decision.p_value == mcnemar(candidate_only, champion_only)
    assert f"right on {candidate_only} test images that the champion misses" in decision.reason


def test_alpha_decides_how_much_doubt_is_allowed(limits: RegisterParams) -> None:
    candidate, champion = pair(70, 12, 8)
    assert decide(candidate, 0.0, champion, limits.model_copy(update={"alpha": 0.6})).became == "champion"


@pytest.mark.parametrize("images", [[1, 1, 2], [1, 1], [1, 1, 1, 1]], ids=["another class", "fewer", "more"])
def test_models_measured_on_other_images_are_not_compared(limits: RegisterParams, images: list[int]) -> None:
    champion = pd.DataFrame({"true": images, "predicted": images})
    with pytest.raises(ValueError, match="other test images"):
        decide(predictions([1, 1, 1]), 0.0, champion, limits)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_exact_binomial_test_and_does_not_care_who_is_first(first: int, second: int) -> None:
    p_value = mcnemar(first, second)
    assert p_value == mcnemar(second, first)
    if first + second:
        assert p_value == pytest.approx(binomtest(first, first + second, 0.5).pvalue)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 4) == pytest.approx(2 / 2**4)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)


def test_equal_models_replace_each_other_no_more_often_than_alpha_allows(
    limits: RegisterParams, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]
) -> None:
    monkeypatch.setattr(promotion, "mcnemar", cache(mcnemar))  # the same counts come again and again
    rng, registrations, images = np.random.default_rng(0), 2000, 500
    right = rng.random((2, registrations, images)) < 0.9
    candidate, champion = predictions(right[0, 0]), predictions(right[1, 0])
    promoted = 0
    for candidate_right, champion_right in zip(*right, strict=True):
        candidate["predicted"], champion["predicted"] = candidate_right.astype(int), champion_right.astype(int)
        promoted += decide(candidate, 0.0, champion, limits).became == "champion"
    rate = promoted / registrations
    report(
        f"equal models: {promoted} false promotions of {registrations}, a rate of {rate:.4f} at alpha {limits.alpha}"
    )
    assert 0 < rate <= limits.alpha


def test_no_chance_is_called_none() -> None:
    assert told_p(mcnemar(0, 4)) == "p = 0.12"
    assert told_p(mcnemar(30, 8000)) == "p < 2e-308"
