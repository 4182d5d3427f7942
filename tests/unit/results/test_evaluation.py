import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lenet5.data.datasets import Split, to_float
from lenet5.data.fashion_mnist import CLASSES
from lenet5.errors import UserError
from lenet5.files import digest
from lenet5.network.lenet5 import LeNet5
from lenet5.params import ModelParams
from lenet5.results import evaluation
from lenet5.results.evaluation import (
    Measure,
    calibration_error,
    calibration_table,
    class_figures,
    feature_maps,
    load_weights,
    measure,
    onset_of_overfitting,
    predict,
    predictions_table,
    split_figures,
    with_gaps,
)

ModelParamsOf = Callable[..., ModelParams]
SplitOf = Callable[[int, int], Split]


def table(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["true", "predicted", "probability"])


def judged(right: int, wrong: int, probability: float) -> list[tuple[str, str, float]]:
    return [("Bag", "Bag", probability)] * right + [("Bag", "Coat", probability)] * wrong


@pytest.fixture
def model(model_params: ModelParamsOf) -> LeNet5:
    torch.manual_seed(0)
    return LeNet5(model_params(dropout=0.5))


def test_predictions_do_not_depend_on_the_batch_and_leave_dropout_out(
    model: LeNet5, random_split: SplitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_split(7, 0).images
    whole = predict(model.train(), images)
    monkeypatch.setattr(evaluation, "BATCH", 3)
    torch.testing.assert_close(predict(model, images), whole)
    torch.testing.assert_close(model.eval()(to_float(images)).detach(), whole)
    assert whole.shape == (7, 10)


@pytest.mark.parametrize("changes", [{"c3": "paper"}, {"activation": "tanh", "pooling": "max"}], ids=str)
def test_feature_maps_are_what_the_logits_are_made_of(
    model_params: ModelParamsOf, random_split: SplitOf, changes: dict[str, str]
) -> None:
    model, images = LeNet5(model_params(dropout=0.5, **changes)), random_split(1, 0).images
    maps = feature_maps(model.train(), images[0])
    shapes = {name: tuple(layer.shape) for name, layer in maps.items()}
    assert shapes == {"C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5)}
    with torch.inference_mode():
        f6 = model.activation(model.f6(model.activation(model.c5(maps["S4"].flatten()[None]))))
        torch.testing.assert_close(model.output(f6), predict(model, images))


def test_calibration_table_holds_the_bins_that_have_images() -> None:
    answers = calibration_table(table(judged(1, 1, 0.9) + judged(2, 0, 1.0) + judged(0, 4, 0.3)), 2)
    assert answers.index.tolist() == [0, 1]
    assert answers["share"].tolist() == [0.5, 0.5]
    assert answers["accuracy"].tolist() == [0, 0.75]
    assert answers["confidence"].tolist() == pytest.approx([0.3, 0.95])


def test_measure_is_cross_entropy_and_the_share_of_right_answers(model: LeNet5, random_split: SplitOf) -> None:
    split = random_split(9, 0)
    probabilities = predict(model, split.images).softmax(1)
    right = [int(row.argmax()) == int(label) for row, label in zip(probabilities, split.labels, strict=True)]
    loss = -np.mean([math.log(row[label]) for row, label in zip(probabilities, split.labels, strict=True)])
    measured = measure(model, split)
    assert measured.loss == pytest.approx(loss, rel=1e-5)
    assert measured.accuracy == np.mean(right)


def test_a_gap_grows_with_overfitting_in_loss_and_in_accuracy() -> None:
    train, validation = Measure(loss=0.25, accuracy=0.75), Measure(loss=0.5, accuracy=0.25)
    assert train.gap_to(validation) == Measure(loss=0.25, accuracy=0.5)
    of_train = {"loss": 0.25, "accuracy": 0.75}
    of_validation, of_test = {"loss": 0.5, "accuracy": 0.25, "loss_low": 0.1}, {"loss": 1.0, "accuracy": 0.125}
    splits = {"train": of_train, "validation": of_validation, "test": of_test}
    to_validation, to_test = {"loss": 0.25, "accuracy": 0.5}, {"loss": 0.75, "accuracy": 0.625}
    assert with_gaps(splits) == {**splits, "gap": to_validation, "gap_test": to_test}
    without = {"train": of_train, "test": of_test}
    assert with_gaps(without) == {**without, "gap": to_test, "gap_test": to_test}


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("correct", [0, 13, 40])
def test_intervals_are_wilsons_for_accuracy_and_normal_for_the_loss(confidence: float, correct: int) -> None:
    n = 40
    labels = torch.arange(n) % 10
    answers = torch.where(torch.arange(n) < correct, labels, (labels + 1) % 10)
    sharpness = torch.linspace(1, 3, n)
    logits = torch.zeros(n, 10).scatter(1, answers[:, None], sharpness[:, None])
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), correct / n
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scores = sharpness.double().numpy()
    losses = np.log(np.exp(scores) + 9) - np.where(np.arange(n) < correct, scores, 0)
    margin = z * losses.std(ddof=1) / math.sqrt(n)
    assert split_figures(logits, labels, confidence) == pytest.approx(
        {
            "loss": losses.mean(),
            "loss_low": losses.mean() - margin,
            "loss_high": losses.mean() + margin,
            "accuracy": p,
            "accuracy_low": (centre - half) / (1 + z**2 / n),
            "accuracy_high": (centre + half) / (1 + z**2 / n),
        },
        abs=1e-9,
    )


def test_predictions_table_names_classes_and_gives_the_probability_of_the_answer() -> None:
    logits = torch.zeros(2, 10)
    logits[0, 8], logits[1, 0] = math.log(9), math.log(3)
    answers = predictions_table(logits, torch.tensor([8, 9]))
    assert answers["true"].tolist() == ["Bag", "Ankle boot"]
    assert answers["predicted"].tolist() == ["Bag", "T-shirt/top"]
    assert answers["probability"].tolist() == pytest.approx([9 / 18, 3 / 12])
    assert answers["image"].tolist() == [0, 1]
    assert answers[list(CLASSES)].sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert answers["Bag"].tolist() == pytest.approx([9 / 18, 1 / 12], abs=1e-6)


def test_class_figures_of_a_small_confusion() -> None:
    pairs = [("Bag", "Bag")] * 3 + [("Bag", "Coat")] + [("Coat", "Bag")] * 2 + [("Coat", "Coat")] * 2
    figures = class_figures(table([(*pair, 1.0) for pair in pairs]))
    assert list(figures) == list(CLASSES)
    assert figures["Bag"] == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3})
    assert figures["Coat"] == pytest.approx({"precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7})
    assert figures["Sandal"] == {"precision": 0, "recall": 0, "f1": 0}


def test_a_class_never_predicted_has_figures_of_zero() -> None:
    figures = class_figures(table([("Shirt", "Coat", 1.0), ("Coat", "Coat", 1.0)]))
    assert figures["Shirt"] == {"precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_probabilities_that_come_true_have_no_calibration_error(bins: int) -> None:
    honest = table(judged(9, 1, 0.9) + judged(6, 4, 0.6) + judged(5, 0, 1.0))
    assert calibration_error(calibration_table(honest, bins)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.9, 1.0])
def test_being_sure_and_wrong_costs_all_the_confidence(confidence: float) -> None:
    assert calibration_error(calibration_table(table(judged(0, 5, confidence)), 15)) == pytest.approx(confidence)


def test_calibration_errors_of_different_bins_do_not_cancel() -> None:
    too_shy, too_bold = judged(10, 0, 0.6), judged(6, 4, 1.0)
    assert calibration_error(calibration_table(table(too_shy + too_bold), 10)) == pytest.approx(0.4)
    assert calibration_error(calibration_table(table(too_shy + too_bold), 1)) == pytest.approx(0, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 1)), min_size=1, max_size=30), st.integers(1, 20))
def test_calibration_error_is_guos_sum_over_bins(answers: list[tuple[bool, float]], bins: int) -> None:
    expected = 0.0
    for number in range(bins):
        inside = [(right, p) for right, p in answers if int(p * bins) == number or (p == 1 and number == bins - 1)]
        if inside:
            accuracy, confidence = np.mean(inside, axis=0)
            expected += len(inside) / len(answers) * abs(accuracy - confidence)
    rows = [("Bag", "Bag" if right else "Coat", p) for right, p in answers]
    assert calibration_error(calibration_table(table(rows), bins)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("losses", "onset"),
    [([0.9, 0.5, 0.6, 0.7], 2), ([0.9, 0.8, 0.7], 3), ([0.5, 0.9, 0.5], 1), ([math.nan] * 3, None)],
)
def test_onset_of_overfitting_is_the_epoch_of_the_lowest_validation_loss(
    losses: list[float], onset: int | None
) -> None:
    history = pd.DataFrame({"epoch": range(1, len(losses) + 1), "validation_loss": losses})
    assert onset_of_overfitting(history) == onset


def saved(path: Path, model: LeNet5) -> str:
    torch.save(model.state_dict(), path)
    return digest(path.read_bytes())


@pytest.mark.parametrize("c3", ["full", "paper"])
def test_saved_weights_come_back(model_params: ModelParamsOf, tmp_path: Path, c3: str, random_split: SplitOf) -> None:
    original = LeNet5(model_params(c3=c3))
    sha256 = saved(tmp_path / "weights.pth", original)
    images = random_split(3, 0).images
    again = load_weights(tmp_path / "weights.pth", sha256, model_params(c3=c3))
    torch.testing.assert_close(predict(again, images), predict(original, images))


@pytest.mark.parametrize("content", [b"", b"not weights at all", None], ids=["empty", "garbage", "one bit"])
def test_damaged_weights_are_told_before_they_are_opened(
    model: LeNet5, model_params: ModelParamsOf, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "weights.pth"
    sha256 = saved(path, model)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if content is None else content)
    with pytest.raises(UserError, match=r"weights\.pth: not what the stage train left .*`dvc repro train` mends it$"):
        load_weights(path, sha256, model_params())


def test_weights_of_another_architecture_are_told_in_one_line(
    model: LeNet5, model_params: ModelParamsOf, tmp_path: Path
) -> None:
    sha256 = saved(tmp_path / "weights.pth", model)
    with pytest.raises(UserError, match=r"weights\.pth: weights of another model than params\.yaml names") as told:
        load_weights(tmp_path / "weights.pth", sha256, model_params(c3="paper"))
    assert "\n" not in str(told.value)


def test_missing_weights_are_told_with_what_makes_them(model_params: ModelParamsOf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.pth: not found; `dvc repro train` makes it$"):
        load_weights(tmp_path / "weights.pth", "0" * 64, model_params())
