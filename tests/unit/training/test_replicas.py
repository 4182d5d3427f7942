from collections.abc import Callable
from typing import Any

import pytest
import torch

import run
from lenet5.data.datasets import Splits
from lenet5.errors import UserError
from lenet5.params import ModelParams, Params, TrainParams
from lenet5.training.engine import EngineChoice
from lenet5.training.loop import Training, make_model
from lenet5.training.replicas import replica_epochs
from tests.replica_clock import let_replicas_take

CPU = torch.device("cpu")
EAGER = EngineChoice("eager", False, "")
SEEDS = [3, 4, 9]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ({}, {"momentum": 0.9, "schedule": "cosine"}),
        ({"pooling": "max", "c3": "paper", "activation": "tanh"}, {"optimizer": "adamw", "lr": 0.002}),
        (
            {"activation": "sigmoid"},
            {
                "augmentation": {"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.5},
                "label_smoothing": 0.1,
                "loss_q": 0.3,
            },
        ),
        ({"activation": "tanh"}, {"epochs": 12, "lr": 0.05, "momentum": 0.9, "patience": 2}),
        ({}, {"weights": "last", "batch_size": 32, "weight_decay": 0.01}),
    ],
    ids=str,
)
def test_a_replica_becomes_what_its_seed_becomes_alone(
    model_params: Callable[..., ModelParams],
    train_params: Callable[..., TrainParams],
    splits: Splits,
    model: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    *_, together = replica_epochs(model_params(**model), splits, train_params(**changes), SEEDS, EAGER)
    for seed, replica in zip(SEEDS, together, strict=True):
        params = train_params(**changes, seed=seed)
        alone = Training(make_model(model_params(**model), seed, CPU), splits, params, EAGER)
        rows = list(alone.epochs())
        assert replica.chosen_epoch == alone.chosen_epoch
        assert len(replica.rows) == len(rows)
        for ours, theirs in zip(replica.rows, rows, strict=True):
            assert vars(ours) == pytest.approx(vars(theirs), rel=1e-3, abs=1e-5)
        for name, weight in alone.weights.items():
            torch.testing.assert_close(replica.weights[name], weight, rtol=1e-3, atol=1e-4)


def test_dropout_is_another_for_each_replica(
    model_params: Callable[..., ModelParams], train_params: Callable[..., TrainParams], splits: Splits
) -> None:
    *_, (first, second) = replica_epochs(model_params(dropout=0.5), splits, train_params(epochs=1), [5, 5], EAGER)
    assert first.rows[0].running_loss != second.rows[0].running_loss


def test_a_replica_that_diverges_is_told(
    model_params: Callable[..., ModelParams], train_params: Callable[..., TrainParams], splits: Splits
) -> None:
    with pytest.raises(UserError, match=f"with seed {SEEDS[0]} the loss became"):
        list(replica_epochs(model_params(), splits, train_params(lr=1e30), SEEDS, EAGER))


def test_the_bench_times_a_replicas_epoch_without_the_first_which_compiles(
    monkeypatch: pytest.MonkeyPatch, params: Params, splits: Splits
) -> None:
    let_replicas_take(0.25, run, monkeypatch)
    monkeypatch.setattr(run, "choose_engine", lambda *_: EAGER)
    assert run.replica_seconds(params, splits, CPU) == pytest.approx(0.25)
