from typing import Any

import numpy as np
import pandas as pd
import pytest

from lenet5.params import Params
from lenet5.results.verdict import verdict
from tests.params import changed


def history(*gaps: float, loss_gaps: tuple[float, ...] = (), train: float = 0.9) -> pd.DataFrame:
    losses = np.abs(np.arange(len(gaps)) - 1) + 0.5  # lowest at epoch 2
    columns = {"gap_accuracy": gaps, "gap_loss": loss_gaps or [0.0] * len(gaps), "test_loss": losses}
    return pd.DataFrame({"epoch": range(1, len(gaps) + 1), "train_accuracy": train, **columns})


def test_overfitting_is_told_with_its_epoch_its_growth_and_what_to_change(params: Params) -> None:
    gaps = np.linspace(0, 0.012, 63).tolist() + np.linspace(0.0125, 0.038, 37).tolist()
    said = verdict(history(*gaps), 63, 63, params)
    assert said == (
        "The validation loss stopped falling at epoch 63 of 100; after that the accuracy gap grew from 1.2 to 3.8 "
        "points, the loss gap hardly changed (0.000 to 0.000 nats). The weights of epoch 63 are kept. To narrow the "
        "gap, consider `train.augmentation`, `model.dropout` or `train.weight_decay` (all off now)."
    )


def test_a_loss_gap_that_grew_is_overfitting_where_the_accuracy_gap_did_not(params: Params) -> None:
    said = verdict(history(0.0, 0.018, 0.019, loss_gaps=(0.0, 0.063, 0.094)), 2, 2, params)
    assert "the accuracy gap hardly changed (1.8 to 1.9 points), the loss gap grew from 0.063 to 0.094 nats." in said
    assert "To narrow the gap" in said
    still = verdict(history(0.0, 0.018, 0.019, loss_gaps=(0.0, 0.063, 0.064)), 2, 2, params)
    assert "the loss gap hardly changed (0.063 to 0.064 nats)" in still
    assert "To narrow the gap" not in still


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"train__momentum": 0.9}, "a smaller `train.lr`: it is 0.1, with `train.momentum` as 1 without, and relu"),
        ({"train__lr": 0.9}, "a smaller `train.lr`: it is 0.9, and relu with sgd learns at about 0.1."),
        ({"train__optimizer": "adamw"}, "a smaller `train.lr`: it is 0.1, and relu with adamw learns at about 0.002."),
        ({"model__activation": "sigmoid"}, "a larger `train.lr`: it is 0.1, and sigmoid with sgd learns at about 0.9."),
        ({}, "more epochs (`train.epochs`)"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("onset", [1, 3, None])
def test_a_training_at_chance_is_named_as_that_with_what_to_try(
    content: dict[str, Any], changes: dict[str, Any], advice: str, onset: int | None
) -> None:
    said = verdict(history(0.0, 0.0, 0.0, train=0.1014), onset or 3, onset, changed(content, **changes))
    assert said.startswith("Nothing was learned: ")
    assert "it is at chance, right on 10.1% of the training images" in said
    assert advice in said
    assert "stopped falling" not in said


def test_what_is_on_already_is_not_advised(content: dict[str, Any]) -> None:
    overfitting = history(0.0, 0.01, 0.03)
    params = changed(content, model__dropout=0.2, train__weight_decay=1e-4)
    assert verdict(overfitting, 2, 2, params).endswith("consider `train.augmentation` (now off).")
    params = changed(content, train__augmentation={"horizontal_flip": False, "shift": 0, "erasing": 0.0, "cutmix": 0.5})
    assert "stronger `train.augmentation`, `model.dropout` or `train.weight_decay`" in verdict(
        overfitting, 2, 2, params
    )


def test_later_weights_than_the_best_are_told(params: Params) -> None:
    said = verdict(history(0.0, 0.01, 0.03), 3, 2, params)
    assert "The weights of epoch 3 are kept: consider those of 2 (`train.weights: best_validation`)." in said


@pytest.mark.parametrize(("last", "advice"), [(0.012, False), (0.006, False), (0.03, True)])
def test_a_gap_that_is_small_and_stays_so_needs_no_advice(params: Params, last: float, advice: bool) -> None:
    said = verdict(history(0.0, 0.01, last), 2, 2, params)
    assert ("grew" in said) == advice
    assert ("accuracy gap hardly changed (1.0 to" in said) == (not advice)
    assert ("consider" in said) == advice


def test_a_wide_gap_is_worth_advice_even_when_it_does_not_grow(params: Params) -> None:
    assert "consider" in verdict(history(0.0, 0.04, 0.04), 2, 2, params)


def test_a_loss_that_still_falls_asks_for_more_epochs(params: Params) -> None:
    said = verdict(history(0.0, 0.01, 0.015), 3, 3, params)
    assert "still at its lowest at the last epoch, 3, with an accuracy gap of 1.5 points" in said
    assert "Consider more epochs (`train.epochs`)" in said


def test_a_gap_that_shrinks_is_said_to(params: Params) -> None:
    assert "shrank from 1.0 to 0.5 points" in verdict(history(0.0, 0.01, 0.005), 2, 2, params)


def test_a_wide_gap_is_overfitting_even_while_the_loss_falls(params: Params) -> None:
    said = verdict(history(0.0, 0.01, 0.03), 3, 3, params)
    assert "no sign of overfitting" not in said
    assert "with an accuracy gap of 3.0 points: it overfits, though more training still helped" in said
    assert "To narrow the gap, consider" in said


def test_without_validation_images_nothing_is_claimed(content: dict[str, Any]) -> None:
    said = verdict(history(0.0, 0.01, 0.02), 3, None, changed(content, data__validation_size=0))
    assert "nothing shows when overfitting began" in said
    assert "the last epoch, 3," in said
    assert "test loss was lowest at epoch 2, which describes the curve and chose nothing" in said
    assert "2.0 points of accuracy better on training than on test images" in said
    assert "`data.validation_size: 5000`" in said


def test_one_epoch_is_too_few_to_tell(params: Params) -> None:
    said = verdict(history(-0.001), 1, 1, params)
    assert "One epoch is too few to see overfitting; the accuracy gap is -0.1 points" in said
