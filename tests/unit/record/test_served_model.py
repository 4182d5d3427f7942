import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from lenet5.data.fashion_mnist import CLASSES
from lenet5.record.served_model import FashionModel, Refusal

PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
PIXELS[::27, ::27] = 0  # the corners: a light thing on black


class Session:
    """In place of ONNX Runtime's: keeps what it is given, and is surest of the class that is a tenth of the mean."""

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images")]

    def run(self, _: None, feed: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        self.images = feed["images"]
        assert self.images.dtype == np.float32
        return [np.eye(10, dtype=np.float32)[(self.images.mean(axis=(1, 2, 3)) * 10).astype(int)]]


@pytest.fixture
def model() -> FashionModel:
    made = FashionModel()
    made._session = Session()
    return made


def ask(model: FashionModel, *values: Any) -> list[dict[str, Any]]:
    return model.predict(None, pd.DataFrame({"images": list(values)}))


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "sent",
    [
        png(),
        base64.b64encode(png()).decode(),
        [base64.b64encode(png()).decode()],
        PIXELS.tolist(),
        PIXELS[np.newaxis].tolist(),
        PIXELS[np.newaxis, np.newaxis].tolist(),
        PIXELS.ravel().tolist(),
        (PIXELS / 255).tolist(),
        PIXELS,
    ],
    ids=["bytes", "base64", "a list", "28x28", "1x28x28", "1x1x28x28", "784", "from 0 to 1", "an array"],
)
def test_a_picture_and_its_grey_levels_are_one_image_however_they_are_sent(model: FashionModel, sent: Any) -> None:
    (answer,) = ask(model, sent)
    np.testing.assert_array_equal(model._session.images, PIXELS[np.newaxis, np.newaxis] / np.float32(255))
    assert answer["class"] == CLASSES[int(PIXELS.mean() / 25.5)]
    assert list(answer["probabilities"]) == list(CLASSES)
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert max(answer["probabilities"], key=answer["probabilities"].__getitem__) == answer["class"]
    assert sorted(answer["logits"]) == [0] * 9 + [1]


def test_several_of_both_kinds_are_answered_in_their_order(model: FashionModel) -> None:
    black, white = np.zeros((28, 28)), np.full((28, 28), 0.999)
    answers = ask(model, [[black.tolist(), white.tolist()], base64.b64encode(png()).decode()], black.tolist())
    expected = [CLASSES[0], CLASSES[9], CLASSES[int(PIXELS.mean() / 25.5)], CLASSES[0]]
    assert [answer["class"] for answer in answers] == expected


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("not base64!", "not base64"),
        ("hällo", "not base64"),
        (base64.b64encode(b"no picture").decode(), "not a picture"),
        ([1, 2], "shape 2"),
        (np.zeros((28, 27)).tolist(), "shape 28x27"),
        ([[0] * 28, [0]], "neither text nor"),
        ({"a": 1}, "neither text nor"),
        (np.full((28, 28), 300).tolist(), "above 255"),
        (np.full((28, 28), -1).tolist(), "below 0"),
        (np.full((28, 28), np.nan).tolist(), "not numbers"),
        (np.full((28, 28), 1.5).tolist(), "not whole numbers"),
        (None, "shape one"),
    ],
)
def test_what_cannot_be_understood_is_one_line_that_says_what_can(model: FashionModel, sent: Any, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        ask(model, sent)
    refused.value.message = f"Failed to predict data '{sent}'. Error: {refused.value.message}"
    assert refused.value.message.startswith("not understood: ")
    assert said in refused.value.message
    assert "base64, or 28 x 28 grey levels" in refused.value.message
    assert refused.value.get_http_status_code() == 400
