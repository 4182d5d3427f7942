"""What the record of one result holds, worked out from params and outs alone. Knows nothing of MLflow."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lenet5.files import digest, read_json, read_trusted
from lenet5.outs import CARD, EVALUATION, EXPORT, HISTORY, ONNX, PREDICTIONS, PROGRAM, TRAINING, WEIGHTS
from lenet5.params import Params, flat_params
from lenet5.results.history import EpochRow, read_history, read_table

# What each curve is called: MLflow's UI makes a group of what stands before the slash. A figure of the finished model
# has no slash, so that MLflow's search takes its name as it is.
_CURVES = {
    "validation_accuracy": "accuracy/validation",
    "test_accuracy": "accuracy/test",
    "train_accuracy": "accuracy/train",
    "running_accuracy": "accuracy/running",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "train_loss": "loss/train",
    "running_loss": "loss/running",
    "gap_accuracy": "gap/accuracy",
    "gap_loss": "gap/loss",
    "learning_rate": "learning_rate",
}

RECORDED = ("kernel_check", "data", "model", "train", "evaluate", "export")
"""The sections of the params that a run holds."""

TRAIN_ACCURACY = _CURVES["train_accuracy"]
SPEED = "speed/images_per_second"


class Point(NamedTuple):
    """One value of one curve; ``timestamp`` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    timestamp: int


def epoch_points(row: EpochRow, images_per_second: float | None) -> list[Point]:
    """The points an epoch adds to the curves; its speed is no part of the history, it differs from run to run."""
    now = time.time_ns() // 1_000_000
    speed = [] if images_per_second is None else [Point(SPEED, images_per_second, row.epoch, now)]
    return [*curve_points(row, now), *speed]


def curve_points(row: EpochRow, timestamp: int) -> list[Point]:
    """The points an epoch adds to the curves of the history."""
    values = {name: getattr(row, column) for column, name in _CURVES.items()}
    return [Point(name, value, row.epoch, timestamp) for name, value in values.items() if value is not None]


def history_points(history: pd.DataFrame) -> list[Point]:
    """Every point of every curve of a finished training."""
    now = time.time_ns() // 1_000_000
    return [
        Point(name, float(value), int(epoch), now)
        for column, name in _CURVES.items()
        for epoch, value in zip(history["epoch"], history[column], strict=True)
        if pd.notna(value)
    ]


def model_figures(
    training: Mapping[str, Any], evaluation: Mapping[str, Any], export: Mapping[str, Any]
) -> dict[str, float]:
    """The figures of the finished model: for all images, by class, of the export, and the epoch its weights are of."""
    best = {"best_epoch": float(training["chosen_epoch"])}
    return evaluation_figures(evaluation) | best | {"export_difference": max(export["parity"].values())}


def headline(training: Mapping[str, Any], evaluation: Mapping[str, Any], champion: bool) -> dict[str, float | bool]:
    """What DVC's tables show of a result, what matters most first; names are short, for columns side by side.

    ``test``, ``validation`` and ``train`` are accuracies, ``gap`` is that of the accuracy; without validation images
    the gaps are those to the test images. ``epoch`` is that of the weights kept, ``ece`` the calibration error.
    """
    gap, splits = evaluation["gap"], ("test", "validation", "train")
    figures = {name: _shown(evaluation[name]["accuracy"]) for name in splits if name in evaluation}
    return figures | {
        "gap": _shown(gap["accuracy"]),
        "champion": champion,
        "loss_gap": _shown(gap["loss"]),
        "epoch": training["chosen_epoch"],
        "ece": _shown(evaluation["calibration_error"]),
    }


def evaluation_figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The figures of ``evaluation.json`` under the names MLflow knows them by."""
    figures: dict[str, float] = {}
    for name, value in evaluation.items():
        if name == "classes":
            figures |= {f"f1_{_word(label)}": scores["f1"] for label, scores in value.items()}
        elif isinstance(value, Mapping):
            figures |= {f"{name}_{key}": number for key, number in value.items()}
        elif value is not None:
            figures[name] = float(value)
    return figures


def recorded_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """A run's ``metrics`` under the names of today: earlier ones were called ``final/test_accuracy`` and the like."""
    return {_name_of_today(name): value for name, value in metrics.items()}


def readable(figures: Mapping[str, float]) -> dict[str, float]:
    """``figures`` to six digits: MLflow's tables show every digit of what they are given."""
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def run_name(params: Params) -> str:
    """The name of DVC's experiment, or what distinguishes this recipe."""
    model, train = params.model, params.train
    parts = [model.activation, model.pooling, train.optimizer, f"{train.lr:g}"]
    if train.schedule != "constant":
        parts.append(train.schedule)
    if train.augmentation.changes():
        parts.append("augmented")
    return os.environ.get("DVC_EXP_NAME") or "-".join([*parts, f"{train.epochs}ep", f"seed{train.seed}"])


@dataclass(frozen=True)
class Result:
    """The outs of one whole pass through the pipeline, read back, and the digests that identify it."""

    params: Params
    history: pd.DataFrame
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    export: Mapping[str, Any]
    card: str
    training_digest: str
    result_digest: str

    @property
    def recorded_params(self) -> dict[str, str]:
        """Every param that can change a figure, as MLflow shows them."""
        return flat_params(self.params, *RECORDED)


@dataclass(frozen=True)
class Measured:
    """A finished result as it is compared with another: its name for people, and what it is judged by."""

    name: str
    params: Mapping[str, str]
    evaluation: Mapping[str, Any]
    predictions: pd.DataFrame
    data_digest: str
    history: pd.DataFrame


def read_predictions(path: Path) -> pd.DataFrame:
    """The test predictions, image by image. Raises UserError where they are missing or no such table."""
    return read_table(path, {"true", "predicted"}, "evaluate")


def read_result(params: Params) -> Result:
    """Read every out of the stages before ``register``. Raises UserError where a model is not what its stage left."""
    training, export = read_json(TRAINING), read_json(EXPORT)
    read_trusted(WEIGHTS, training["weights_sha256"], "train")
    onnx_model = read_trusted(ONNX, export["onnx_sha256"], "export")
    program = read_trusted(PROGRAM, export["program_sha256"], "export")
    training_digest = digest_training(params)
    others = b"".join(path.read_bytes() for path in (EVALUATION, PREDICTIONS, EXPORT))
    return Result(
        params=params,
        history=read_history(HISTORY),
        training=training,
        evaluation=read_json(EVALUATION),
        export=export,
        card=CARD.read_text(encoding="utf-8"),
        training_digest=training_digest,
        result_digest=digest(training_digest.encode() + onnx_model + program + others),
    )


def digest_training(params: Params) -> str:
    """Identify what ``train`` produced: its params and its outs. Equal on every machine that holds the same."""
    recipe = repr(sorted(flat_params(params, "data", "model", "train").items()))
    return digest(recipe.encode() + b"".join(path.read_bytes() for path in (WEIGHTS, HISTORY, TRAINING)))


def _shown(figure: float) -> float:
    """To what ten thousand images can tell: with more digits, results that are the same would show as changed."""
    return round(figure, 4)


def _name_of_today(name: str) -> str:
    group, _, rest = name.rpartition("/")
    return {
        "final": rest,
        "f1": f"f1_{_word(rest)}",
        "best": f"best_{rest}",
        "export": "export_difference",
    }.get(group, name)


def _word(label: str) -> str:
    """``label`` as MLflow's search takes it without quotes."""
    return re.sub(r"\W", "_", label).lower()
