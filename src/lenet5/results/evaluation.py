"""Figures of frozen weights: loss, accuracy, gaps, their intervals, per-class scores, calibration."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lenet5.data.datasets import Split, to_float
from lenet5.data.fashion_mnist import CLASSES
from lenet5.errors import UserError
from lenet5.files import read_trusted
from lenet5.network.lenet5 import LeNet5
from lenet5.params import ModelParams

if TYPE_CHECKING:
    import pandas as pd  # where it is used, it is imported late: training needs none

BATCH = 250
"""On a CPU: small enough for the activations to stay in its cache, twice as fast as 2,000 images at a time."""


@dataclass(frozen=True)
class Measure:
    """Mean cross-entropy in nats and the share of images classified rightly."""

    loss: float
    accuracy: float

    def gap_to(self, other: "Measure") -> "Measure":
        """How much worse ``other`` is: both numbers grow with overfitting when this is the training sample."""
        return Measure(other.loss - self.loss, self.accuracy - other.accuracy)


def predict(model: LeNet5, images: Tensor) -> Tensor:
    """Logits (n, 10) for images (n, 28, 28) uint8, with dropout off."""
    model.eval()
    size = BATCH if images.device.type == "cpu" else max(1, len(images))
    with torch.inference_mode():
        return torch.cat([model(to_float(batch)) for batch in images.split(size)])


def count(model: LeNet5, split: Split) -> Tensor:
    """Mean loss and number of rightly classified images of ``split``, (2,) float64, left on the device."""
    logits = predict(model, split.images)
    loss = F.cross_entropy(logits, split.labels)
    correct = (logits.argmax(1) == split.labels).sum()
    return torch.stack([loss.double(), correct.double()])


def feature_maps(model: LeNet5, image: Tensor) -> dict[str, Tensor]:
    """What C1 and C3 (after the activation) and S2 and S4 make of one image (28, 28) uint8: (maps, height, width)."""
    model.eval()
    with torch.inference_mode():
        c1 = model.activation(model.c1(to_float(image[None])))
        s2 = model.s2(c1)
        c3 = model.activation(model.c3(s2))
        return {name: maps[0] for name, maps in {"C1": c1, "S2": s2, "C3": c3, "S4": model.s4(c3)}.items()}


def measure(model: LeNet5, split: Split) -> Measure:
    """Loss and accuracy of ``model`` as it stands on ``split``."""
    loss, correct = count(model, split).tolist()
    return Measure(loss, correct / len(split))


def load_weights(path: Path, sha256: str, params: ModelParams) -> LeNet5:
    """The trained model, on the CPU. Raises UserError where ``path`` is missing, damaged or of another model."""
    content = read_trusted(path, sha256, "train")
    model = LeNet5(params)
    try:
        model.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: weights of another model than params.yaml names; `dvc repro train` ({reason})"
        ) from None
    return model.to(memory_format=torch.channels_last)


def split_figures(logits: Tensor, labels: Tensor, confidence: float) -> dict[str, float]:
    """Loss and accuracy with their intervals: normal for the mean loss, Wilson's for the accuracy."""
    from scipy.stats import binomtest, norm

    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    correct = int((logits.argmax(1) == labels).sum())
    margin = norm.ppf((1 + confidence) / 2) * losses.std(correction=min(1, len(labels) - 1)).item() / len(labels) ** 0.5
    interval = binomtest(correct, len(labels)).proportion_ci(confidence, method="wilson")
    return {
        "loss": losses.mean().item(),
        "loss_low": losses.mean().item() - margin,
        "loss_high": losses.mean().item() + margin,
        "accuracy": correct / len(labels),
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
    }


def with_gaps(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The ``figures`` of each split, and the overfitting gaps: to validation images, if any, and to test images."""
    train, test = figures["train"], figures["test"]
    return {**figures, "gap": _gap(train, figures.get("validation", test)), "gap_test": _gap(train, test)}


def _gap(better: Mapping[str, float], worse: Mapping[str, float]) -> dict[str, float]:
    return asdict(Measure(better["loss"], better["accuracy"]).gap_to(Measure(worse["loss"], worse["accuracy"])))


def predictions_table(logits: Tensor, labels: Tensor) -> "pd.DataFrame":
    """One row an image: its index, true class, predicted class and that one's probability; then those of all classes.

    The probabilities of all classes are rounded to six digits.
    """
    import pandas as pd

    shares = logits.double().softmax(1)
    probabilities, predicted = shares.max(1)
    names = np.array(CLASSES)
    table = pd.DataFrame(
        {
            "image": range(len(labels)),
            "true": names[labels.numpy()],
            "predicted": names[predicted.numpy()],
            "probability": probabilities.numpy(),
        }
    )
    return table.join(pd.DataFrame(shares.numpy().round(6), columns=names))


def class_figures(predictions: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """Precision, recall and F1 by class."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(
        predictions["true"], predictions["predicted"], labels=list(CLASSES), zero_division=0.0
    )
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f1)}
        for name, p, r, f1 in zip(CLASSES, *scores[:3], strict=True)
    }


def calibration_table(predictions: "pd.DataFrame", bins: int) -> "pd.DataFrame":
    """Share of the images, mean confidence and accuracy in each of the equal-width bins (the index) that has any."""
    import pandas as pd

    right = (predictions["true"] == predictions["predicted"]).astype(float)
    bin_of = (predictions["probability"] * bins).astype(int).clip(upper=bins - 1).rename("bin")
    columns = pd.DataFrame({"confidence": predictions["probability"], "accuracy": right}).groupby(bin_of)
    return columns.mean().assign(share=columns.size() / len(predictions))


def calibration_error(table: "pd.DataFrame") -> float:
    """Expected calibration error: mean distance of confidence from accuracy over the bins of ``calibration_table``.

    Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.
    """
    return float(((table["accuracy"] - table["confidence"]).abs() * table["share"]).sum())


def onset_of_overfitting(history: "pd.DataFrame") -> int | None:
    """The epoch of the lowest validation loss, after which it fell no more. None without validation images."""
    losses: Any = history["validation_loss"]
    return None if losses.isna().all() else int(history["epoch"][losses.idxmin()])
