"""Stage evaluate: every figure of the trained model, with intervals. A few seconds on any CPU."""

import torch

from lenet5 import evaluation
from lenet5.datasets import load_splits
from lenet5.fashion_mnist import RAW_DIR
from lenet5.files import atomic_path, read_json, write_json
from lenet5.history import read_history
from lenet5.outs import EVALUATION, HISTORY, PREDICTIONS, TRAINING, WEIGHTS
from lenet5.params import Params
from lenet5.stage import run_stage


def main(params: Params) -> None:
    """Measure the chosen weights on every split, and tabulate the test predictions image by image."""
    splits = load_splits(RAW_DIR, params.data, torch.device("cpu"))
    model = evaluation.load_weights(WEIGHTS, read_json(TRAINING)["weights_sha256"], params.model)
    logits = {name: evaluation.predict(model, split.images) for name, split in splits.measured().items()}
    figures = {
        name: evaluation.split_figures(logits[name], split.labels, params.evaluate.confidence)
        for name, split in splits.measured().items()
    }
    predictions = evaluation.predictions_table(logits["test"], splits.test.labels)
    with atomic_path(PREDICTIONS) as beside:
        predictions.to_csv(beside, index=False)
    gap = evaluation.gap_figures(figures["train"], figures.get("validation", figures["test"]))
    report = {
        **figures,
        "gap": gap,
        "gap_test": evaluation.gap_figures(figures["train"], figures["test"]),
        "onset_of_overfitting": evaluation.onset_of_overfitting(read_history(HISTORY)),
        "calibration_error": evaluation.calibration_error(predictions, params.evaluate.calibration_bins),
        "classes": evaluation.class_figures(predictions),
    }
    write_json(EVALUATION, report)
    for name, row in figures.items():
        low, high = row["accuracy_low"], row["accuracy_high"]
        print(f"{name:>10}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  [{low:.4f}, {high:.4f}]")
    print(f"       gap  loss {gap['loss']:.4f}  accuracy {gap['accuracy']:.4f}")


if __name__ == "__main__":
    run_stage("evaluate", main)
