import numpy as np
import pytest

from lenet5.data.likeness import unlikeness, warning


def test_what_no_garment_looks_like_is_warned_of() -> None:
    dice = np.random.default_rng(0)
    specks = np.zeros((28, 28), np.uint8)
    specks[dice.integers(0, 28, 9), dice.integers(0, 28, 9)] = 255
    for image in (dice.integers(0, 256, (28, 28)).astype(np.uint8), np.full((28, 28), 255, np.uint8), specks):
        assert unlikeness(image) > 0.99
        assert "do not trust the answer" in warning(unlikeness(image))


def test_nothing_at_all_has_a_measure_too() -> None:
    assert 0 <= unlikeness(np.zeros((28, 28), np.uint8)) <= 1


@pytest.mark.parametrize(("unlike", "said"), [(0.5, ""), (0.99, ""), (0.9951, "99.5%"), (1.0, "99.9%")])
def test_the_warning_names_the_share_and_claims_no_more_than_is_known(unlike: float, said: str) -> None:
    assert said in warning(unlike)
    assert bool(warning(unlike)) == bool(said)
