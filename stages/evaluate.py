"""Stage evaluate: every figure of the trained model, with intervals, its pictures and its card. About 15 s."""

from beside import run_stage

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lenet5.data.datasets import Splits, load_splits
from lenet5.data.fashion_mnist import CLASSES, RAW_DIR
from lenet5.files import atomic_path, read_json, write_bytes, write_json
from lenet5.network.lenet5 import LeNet5, layers
from lenet5.outs import (
    CARD,
    CARD_PAGE,
    CLASS_SCORES,
    CONFUSION,
    CURVES,
    EVALUATION,
    FEATURE_MAPS,
    HISTORY,
    MISTAKES,
    PREDICTIONS,
    RELIABILITY,
    SAMPLES,
    TRAINING,
    WEIGHTS,
)
from lenet5.params import Params
from lenet5.processors import use_own_share
from lenet5.results import evaluation, figures, model_card
from lenet5.results.history import read_history
from lenet5.results.verdict import accuracy_with_interval, points, verdict

SHOE = CLASSES.index("Ankle boot")


def main(params: Params) -> None:
    """Measure the chosen weights on every split, tabulate the test predictions, draw, and write the model card."""
    use_own_share()
    splits = load_splits(RAW_DIR, params.data, torch.device("cpu"))
    training, history = read_json(TRAINING), read_history(HISTORY)
    model = evaluation.load_weights(WEIGHTS, training["weights_sha256"], params.model)
    logits = {name: evaluation.predict(model, split.images) for name, split in splits.measured().items()}
    predictions = evaluation.predictions_table(logits["test"], splits.measured()["test"].labels)
    with atomic_path(PREDICTIONS) as beside:
        predictions.to_csv(beside, index=False)
    calibration = evaluation.calibration_table(predictions, params.evaluate.calibration_bins)
    report = measure(params, splits, logits) | {
        "onset_of_overfitting": evaluation.onset_of_overfitting(history),
        "calibration_error": evaluation.calibration_error(calibration),
        "classes": evaluation.class_figures(predictions),
    }
    write_json(EVALUATION, report)
    figures.draw_curves(CURVES, history, training["chosen_epoch"], report["onset_of_overfitting"])
    figures.draw_confusion(CONFUSION, predictions)
    figures.draw_classes(CLASS_SCORES, report["classes"])
    figures.draw_reliability(RELIABILITY, calibration, params.evaluate.calibration_bins, report["calibration_error"])
    draw_images(params, splits, model, predictions)
    card = model_card.model_card(params, history, training, report, layers(model), predictions)
    write_bytes(CARD, card.encode())
    write_bytes(CARD_PAGE, model_card.page(card, CARD.parent).encode())
    show(report)
    print(verdict(history, training["chosen_epoch"], report["onset_of_overfitting"], params))


def measure(params: Params, splits: Splits, logits: Mapping[str, Tensor]) -> dict[str, Any]:
    """Loss and accuracy of every split with intervals, and the overfitting gaps."""
    confidence = params.evaluate.confidence
    return evaluation.with_gaps(
        {
            name: evaluation.split_figures(logits[name], split.labels, confidence)
            for name, split in splits.measured().items()
        }
    )


def draw_images(params: Params, splits: Splits, model: LeNet5, predictions: pd.DataFrame) -> None:
    """The sheets of samples and of mistakes, and what the layers make of the first ankle boot among the test images."""
    figures.draw_samples(SAMPLES, splits.train.images.numpy(), splits.train.labels.numpy())
    test = splits.measured()["test"]
    figures.draw_mistakes(MISTAKES, predictions, test.images.numpy())
    shoe = test.images[int((test.labels == SHOE).nonzero()[0])]
    maps = {name: layer.numpy() for name, layer in evaluation.feature_maps(model, shoe).items()}
    kernels = model.c1.weight.detach().numpy()[:, 0]
    picture = figures.feature_maps(shoe.numpy(), kernels, maps, params.model.activation, params.model.pooling)
    write_bytes(FEATURE_MAPS, picture)


def show(report: Mapping[str, Any]) -> None:
    """Print what a person wants to know first."""
    for name in ("train", "validation", "test"):
        if row := report.get(name):
            print(f"{name:>10}  accuracy {accuracy_with_interval(row)}  loss {row['loss']:.3f} nats")
    if "validation" not in report:
        print("validation  no images held out: no onset of overfitting can be told, and the gap is to the test images")
    print(
        f"       gap  {points(report['gap']['accuracy'])} points of accuracy, {report['gap']['loss']:.3f} nats of loss"
    )


if __name__ == "__main__":
    run_stage("evaluate", main)
