"""The registered model as MLflow serves it: pictures or grey levels in, an answer that needs no explanation out.

MLflow keeps this file with the model, and the modules of ``SERVED_CODE`` beside it: it must need nothing else.
"""

import base64
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray
from scipy.special import softmax

from lenet5.data.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.data.images import decode_image
from lenet5.errors import UserError

_TAKES = (
    "each of `images` is a picture's bytes as base64, or 28 x 28 grey levels of a light thing on black, "
    "from 0 to 1 or whole numbers up to 255"
)


class Refusal(MlflowException):
    """What a caller can mend. MLflow would put everything that was sent before its text."""

    @property
    def message(self) -> str:
        """What is wrong, in one line."""
        return self._text

    @message.setter
    def message(self, text: str) -> None:
        self._text = getattr(self, "_text", text)


class FashionModel(PythonModel):
    """``images`` -> for each its class, every class's probability, and the logits they come from."""

    def load_context(self, context: Any) -> None:
        """Ready the ONNX model on the CPU."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self._session = onnxruntime.InferenceSession(context.artifacts["onnx"], providers=["CPUExecutionProvider"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """An answer for each image of the column ``images``. Raises Refusal where one cannot be understood."""
        images = [image for value in model_input["images"] for image in _images(value)]
        if not images:
            raise _refusal("there is no image")
        (logits,) = self._session.run(None, {self._session.get_inputs()[0].name: np.stack(images)[:, np.newaxis]})
        return [_answer(row) for row in logits.astype(np.float64)]


def _answer(logits: NDArray[np.float64]) -> dict[str, Any]:
    shares = softmax(logits)
    return {
        "class": CLASSES[int(shares.argmax())],
        "probabilities": dict(zip(CLASSES, shares.tolist(), strict=True)),
        "logits": logits.tolist(),
    }


def _images(value: Any) -> Iterator[NDArray[np.float32]]:
    """The images (28, 28), from 0 to 1, of what somebody sent: one or several of either kind."""
    if isinstance(value, (str, bytes)):
        yield _picture(value)
    elif isinstance(value, (list, tuple, np.ndarray)) and any(isinstance(entry, (str, bytes)) for entry in value):
        for entry in value:
            yield from _images(entry)
    else:
        yield from map(_scaled, _levels(value))


def _picture(content: str | bytes) -> NDArray[np.float32]:
    try:
        return decode_image(io.BytesIO(_binary(content))).astype(np.float32) / np.float32(255)
    except UserError as error:
        raise _refusal(f"a picture that cannot be used: {error}") from None


def _binary(content: str | bytes) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise _refusal("a text that is not base64") from None


def _levels(value: Any) -> NDArray[np.float64]:
    """Grey levels as (n, 28, 28): of images of two dimensions, with a channel before them, or flat."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _refusal("something that is neither text nor a table of numbers") from None
    side = IMAGE_SIZE
    if array.shape[-2:] != (side, side) and array.shape[-1:] != (side * side,):
        raise _refusal(f"numbers of shape {'x'.join(map(str, array.shape)) or 'one'}")
    return array.reshape(-1, side, side)


def _scaled(image: NDArray[np.float64]) -> NDArray[np.float32]:
    if not ((image >= 0) & (image <= 255)).all():
        raise _refusal("grey levels below 0, above 255 or not numbers")
    if image.max() > 1:
        if (image % 1).any():
            raise _refusal("grey levels above 1 that are not whole numbers")
        image = image / 255
    return image.astype(np.float32)


def _refusal(got: str) -> Refusal:
    return Refusal(f"not understood: {got}; {_TAKES}", BAD_REQUEST)


set_model(FashionModel())
