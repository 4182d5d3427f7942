import io
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lenet5.data.datasets import Split, Splits
from lenet5.errors import UserError
from lenet5.params import ModelParams, Params, TrainParams
from lenet5.results.evaluation import Measure, count, measure
from lenet5.training import engine as engine_module
from lenet5.training.card_errors import CardError
from lenet5.training.engine import choose_engine
from lenet5.training.loop import Training, make_model, prepare
from lenet5.training.recipe import learning_rates
from tests.params import CONTENT

CPU = torch.device("cpu")
OVERFITTING = {"epochs": 8, "lr": 0.05, "momentum": 0.9}
ALL_CHANGES = {"horizontal_flip": True, "shift": 2, "erasing": 0.5, "cutmix": 0.5}

Start = Callable[..., Training]


@pytest.fixture
def start(model_params: Callable[..., ModelParams], train_params: Callable[..., TrainParams], splits: Splits) -> Start:
    def begin(images: Splits = splits, model: dict[str, Any] | None = None, **changes: Any) -> Training:
        params = train_params(**changes)
        engine = choose_engine(model_params(), params, len(images.train), CPU)
        return Training(make_model(model_params(**(model or {})), params.seed, CPU), images, params, engine)

    return begin


def finish(training: Training) -> dict[str, Tensor]:
    for _ in training.epochs():
        pass
    return training.weights


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def loaded(training: Training, weights: dict[str, Tensor]) -> Any:
    training._model.load_state_dict(weights)
    return training._model


def test_test_images_change_nothing_but_what_is_told_of_them(start: Start, splits: Splits) -> None:
    changes = {"model": {"dropout": 0.3}, **OVERFITTING}
    with_test = finish(seen := start(**changes))
    without = finish(unseen := start(replace(splits, test=None), **changes))  # now: dropout draws from one stream
    assert same(with_test, without)
    assert unseen.rows == [replace(row, test_loss=None, test_accuracy=None) for row in seen.rows]


def test_best_validation_keeps_the_weights_of_the_epoch_with_the_lowest_validation_loss(
    start: Start, splits: Splits
) -> None:
    training = start(**OVERFITTING)
    snapshots = [copied(training._model.state_dict()) for _ in training.epochs()]
    losses = [row.validation_loss for row in training.rows]
    best = losses.index(min(losses))
    assert best < len(losses) - 1, "it has to overfit for this test to tell anything"
    assert training.chosen_epoch == best + 1
    assert same(training.weights, snapshots[best])
    assert splits.validation is not None
    measured = measure(loaded(training, training.weights), splits.validation)
    assert measured.loss == losses[best]
    assert measured.accuracy == training.rows[best].validation_accuracy


def test_last_keeps_the_weights_of_the_last_epoch(start: Start) -> None:
    training = start(**OVERFITTING, weights="last")
    weights = finish(training)
    assert training.chosen_epoch == 8
    assert same(weights, training._model.state_dict())


def test_the_kept_weights_do_not_move_with_later_epochs(start: Start) -> None:
    training = start(weights="last")
    epochs = training.epochs()
    next(epochs)
    held, first = training.weights, copied(training.weights)
    next(epochs)
    assert same(held, first)
    assert not same(held, training.weights)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_stops_that_many_epochs_after_the_best(start: Start, patience: int) -> None:
    everything, patient = start(**OVERFITTING), start(**OVERFITTING, patience=patience)
    finish(everything)
    finish(patient)
    assert len(patient.rows) == patient.chosen_epoch + patience < 8
    assert patient.rows == everything.rows[: len(patient.rows)]
    assert list(patient.epochs()) == []


def test_without_validation_images_the_last_weights_are_kept_and_the_gap_is_to_the_test_images(
    start: Start, splits: Splits
) -> None:
    training = start(replace(splits, validation=None), **OVERFITTING)
    weights = finish(training)
    assert training.chosen_epoch == 8
    assert same(weights, training._model.state_dict())
    for row in training.rows:
        assert row.validation_loss is row.validation_accuracy is None
        assert row.gap_loss == row.test_loss - row.train_loss
        assert row.gap_accuracy == row.train_accuracy - row.test_accuracy


def test_with_validation_images_the_gap_is_to_them(start: Start) -> None:
    training = start(**OVERFITTING)
    finish(training)
    for row in training.rows:
        assert row.gap_loss == row.validation_loss - row.train_loss
        assert row.gap_accuracy == row.train_accuracy - row.validation_accuracy
    assert training.rows[-1].gap_loss > 0


def test_each_row_measures_the_weights_at_the_epochs_end(start: Start, splits: Splits) -> None:
    training = start()
    for number, row in enumerate(training.epochs(), start=1):
        assert row.epoch == number
        assert Measure(row.train_loss, row.train_accuracy) == measure(training._model, splits.train_sample)
        assert Measure(row.test_loss, row.test_accuracy) == measure(training._model, splits.test)
        assert row.running_loss != row.train_loss


def test_rows_show_the_learning_rate_of_the_epochs_last_step(
    start: Start, train_params: Callable[..., TrainParams]
) -> None:
    training = start(schedule="cosine", batch_size=10)
    finish(training)
    params = train_params(schedule="cosine", epochs=3)
    assert [row.learning_rate for row in training.rows] == [learning_rates(params, 4, epoch)[-1] for epoch in (1, 2, 3)]


def test_training_twice_with_one_seed_gives_identical_weights_and_history(start: Start) -> None:
    changes: dict[str, Any] = {"model": {"dropout": 0.3}, "augmentation": ALL_CHANGES}
    first, second, other = start(**changes), start(**changes), start(**changes, seed=1)
    # One after the other: dropout draws from PyTorch's own random state.
    weights = []
    for one, seed in ((first, 0), (second, 0), (other, 1)):
        torch.manual_seed(seed)
        weights.append(finish(one))
    assert same(weights[0], weights[1])
    assert first.rows == second.rows
    assert not same(weights[0], weights[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.1},
        {"loss_q": 0.3},
        {"model": {"dropout": 0.3}},
        {"model": {"pooling": "max"}},
        {"augmentation": {"horizontal_flip": True, "shift": 0, "erasing": 0.0, "cutmix": 0.0}},
        {"augmentation": {"horizontal_flip": False, "shift": 2, "erasing": 0.0, "cutmix": 0.0}},
        {"augmentation": {"horizontal_flip": False, "shift": 0, "erasing": 0.5, "cutmix": 0.0}},
        {"augmentation": {"horizontal_flip": False, "shift": 0, "erasing": 0.0, "cutmix": 0.5}},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"optimizer": "adamw", "lr": 0.002},
        {"schedule": "cosine"},
        {"schedule": "onecycle"},
        {"batch_size": 7},
        {"batch_size": 32},
        {"batch_size": 60_000},
        {"lr": 0.05},
        {"precision": "bf16"},
        {"seed": 1},
    ],
    ids=str,
)
def test_every_knob_turns_and_changes_the_result(start: Start, changes: dict[str, Any]) -> None:
    usual, changed = start(epochs=2), start(epochs=2, **changes)
    assert not same(finish(usual), finish(changed))
    assert all(math.isfinite(row.test_loss) for row in changed.rows)


def test_it_learns_what_can_be_learned(start: Start, splits: Splits) -> None:
    labels = torch.arange(60) % 10
    images = torch.zeros(60, 28, 28, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 4] = 255
    bars = Split(images, labels)
    training = start(replace(splits, train=bars, train_sample=bars), epochs=15, optimizer="adamw", lr=0.005)
    finish(training)
    assert training.rows[-1].train_accuracy == 1
    assert training.rows[-1].running_loss < 0.1 * training.rows[0].running_loss


def test_divergence_is_told_with_epoch_step_and_learning_rate_and_keeps_nothing(start: Start) -> None:
    training = start(lr=1e30)
    with pytest.raises(
        UserError, match=r"the loss became (nan|inf) at epoch 1, step 2, with learning rate 1e\+30"
    ) as told:
        finish(training)
    assert "smaller train.lr" in str(told.value)
    assert training.rows == []
    assert training.weights == {}


def test_divergence_in_the_last_step_of_an_epoch_is_told_too(start: Start) -> None:
    with pytest.raises(UserError, match=r"the loss became (nan|inf) after epoch 1, with learning rate 1e\+30"):
        finish(start(lr=1e30, batch_size=32))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_divergence_seen_only_on_images_never_trained_on_is_told_too(
    start: Start, splits: Splits, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(model: Any, data: Any) -> Tensor:
        return torch.tensor([math.inf, 0.0]) if data is getattr(splits, split) else count(model, data)

    monkeypatch.setattr(engine_module, "count", overflowing)
    with pytest.raises(UserError, match="the loss became inf after epoch 1"):
        finish(start())


RESUMABLE: list[dict[str, Any]] = [
    {"momentum": 0.9, "schedule": "onecycle"},
    {"optimizer": "adamw", "lr": 0.002, "schedule": "cosine"},
    {"model": {"dropout": 0.4}, "augmentation": ALL_CHANGES},
    {**OVERFITTING, "patience": 2},
    {"weights": "last"},
    {"precision": "bf16"},
]


@pytest.mark.parametrize("epochs_before", [1, 2])
@pytest.mark.parametrize("changes", RESUMABLE, ids=str)
def test_a_training_taken_up_again_ends_as_if_it_had_never_stopped(
    start: Start, changes: dict[str, Any], epochs_before: int
) -> None:
    whole = start(**changes)
    finish(whole)

    broken_off, buffer = start(**changes), io.BytesIO()
    for row in broken_off.epochs():
        if row.epoch == epochs_before:
            break
    torch.save(broken_off.state_dict(), buffer)
    buffer.seek(0)

    resumed = start(**changes)
    torch.rand(5)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    finish(resumed)
    assert resumed.rows == whole.rows
    assert resumed.chosen_epoch == whole.chosen_epoch
    assert same(resumed.weights, whole.weights)
    assert same(resumed._model.state_dict(), whole._model.state_dict())


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_a_training_interrupted_on_one_thread_goes_on_where_there_are_more(
    start: Start, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = start(engine=engine)
    state: dict[str, Any] = {}
    for row in whole.epochs():
        if row.epoch == 1:
            state = deepcopy(whole.state_dict())
    torch.set_num_threads(2)
    resumed = start(engine=engine)
    resumed.load_state_dict(state)
    weights = finish(resumed)
    torch.set_num_threads(threads)
    assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)
    assert resumed.rows == whole.rows


def test_a_card_that_is_busy_when_the_images_go_there_is_a_line() -> None:
    def load(*_: object) -> Splits:
        raise torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable")

    with pytest.raises(CardError, match="the card is busy"):
        prepare(Path("nowhere"), Params.model_validate(CONTENT), load)
