"""What the exported model says about pictures, with ONNX Runtime alone: no PyTorch, and MLflow only for its URIs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lenet5.errors import UserError
from lenet5.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.images import read_image

SHOWN = 3

_MODEL_URIS = ("models:/", "runs:/")


def predict(paths: Sequence[Path], reference: str, as_json: bool) -> int:
    """Print the likeliest classes of each picture; one line on stderr for each that is none.

    Returns the exit status: 1 when a picture could not be answered. Raises UserError where the model cannot be used.
    """
    session = load_session(read_model(reference), reference)
    read = _read_all(paths)
    answers = [(path, ranked(probabilities(session, image))[:SHOWN]) for path, image in read]
    if as_json:
        print(json.dumps([{"image": str(path), "classes": classes} for path, classes in answers], indent=2))
    elif answers:
        _print_table(answers)
    return 0 if len(read) == len(paths) else 1


def is_model_uri(reference: str) -> bool:
    """Whether MLflow resolves ``reference``; otherwise it is a file."""
    return reference.startswith(_MODEL_URIS)


def read_model(reference: str) -> bytes:
    """The ONNX model in a file, or at an MLflow URI such as ``models:/NAME@champion``."""
    if is_model_uri(reference):
        from lenet5.tracking import fetch_onnx

        return fetch_onnx(reference)
    try:
        return Path(reference).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{reference}: no such model; `dvc repro export` makes models/lenet5.onnx") from None
    except OSError as error:
        raise UserError(f"{reference}: {(error.strerror or str(error)).lower()}; --model takes an ONNX file") from None


def load_session(model: bytes, name: str) -> onnxruntime.InferenceSession:
    """Ready ``model`` on the CPU. Raises UserError where it is no ONNX model, or none for these images."""
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise UserError(f"{name}: not an ONNX model that can be used ({error}); --model takes another") from None
    nodes = (*session.get_inputs(), *session.get_outputs())
    kinds = [(node.type, node.shape[1:]) for node in nodes]
    wanted = [("tensor(float)", [1, IMAGE_SIZE, IMAGE_SIZE]), ("tensor(float)", [len(CLASSES)])]
    # A batch of any size has a name or none in place of a number.
    if kinds != wanted or (isinstance(nodes[0].shape[0], int) and nodes[0].shape[0] != 1):
        raise UserError(
            f"{name}: a model of another kind; it must take (batch, 1, 28, 28) floats and give (batch, 10), "
            f"not {[(node.type, node.shape) for node in nodes]}"
        )
    return session


def probabilities(session: onnxruntime.InferenceSession, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The probability of each class (10,) for an image (28, 28): the softmax of the model's logits."""
    scaled = image[np.newaxis, np.newaxis].astype(np.float32) / np.float32(255)
    (logits,) = session.run(None, {session.get_inputs()[0].name: scaled})
    exponentials = np.exp(logits[0].astype(np.float64) - logits.max())
    result: NDArray[np.float64] = exponentials / exponentials.sum()
    return result


def ranked(row: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Every class with its probability, of (10,), the likeliest first."""
    return [{"class": CLASSES[index], "probability": float(row[index])} for index in np.argsort(-row, kind="stable")]


def _read_all(paths: Sequence[Path]) -> list[tuple[Path, NDArray[np.uint8]]]:
    read = []
    for path in paths:
        try:
            read.append((path, read_image(path)))
        except UserError as error:
            print(f"lenet5 predict: {' '.join(str(error).split())}", file=sys.stderr)
    return read


def _print_table(answers: Sequence[tuple[Path, list[dict[str, Any]]]]) -> None:
    table = Table("image", "likeliest", "second", "third")
    table.columns[0].overflow = "fold"
    for path, classes in answers:
        table.add_row(str(path), *(f"{entry['class']} {entry['probability']:.1%}" for entry in classes))
    Console(markup=False, highlight=False).print(table)
