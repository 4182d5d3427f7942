"""How unlike the training images an image is: what their principal components leave of it unexplained.

Those of the 60,000 training images are a small file beside this one; `python -m lenet5.data.likeness` makes it anew.
"""

import io
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lenet5.data.fashion_mnist import RAW_DIR, TRAIN_IMAGES
from lenet5.files import write_bytes

_COMPONENTS = 24
_QUANTILES = np.concatenate([np.linspace(0, 0.9, 10), [0.95, 0.98, 0.99, 0.995, 0.999, 1]])
_USUAL_LENGTH = 10
_WARNED_OF = 0.99
_FILE = "likeness.npz"


def unlikeness(image: NDArray[np.uint8]) -> float:
    """The share of the training images that are less unlike the others than ``image`` (28, 28) is, 0 to 1."""
    known = _known()
    distance = _distances(image.reshape(1, -1), known)
    return float(np.interp(distance, known["distances"], known["shares"])[0])


def warning(unlike: float) -> str:
    """What is to be said of an answer about an image that is so unlike the training images; nothing of most."""
    if unlike <= _WARNED_OF:
        return ""
    return f"more unlike the training images than {min(unlike, 0.999):.1%} of them are: do not trust the answer"


@cache
def _known() -> dict[str, NDArray[np.float32]]:
    with np.load(io.BytesIO((files("lenet5.data") / _FILE).read_bytes())) as content:
        return {name: content[name].astype(np.float32) for name in content.files}


def _distances(images: NDArray[np.uint8], known: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """What is left of each image (n, 784) that no mixture of components explains, and how odd the mixture is."""
    centred = _features(images) - known["mean"]
    scores = centred @ known["components"].T
    left = (centred**2).sum(axis=1) - (scores**2).sum(axis=1)
    odd = (scores**2 / known["variances"]).sum(axis=1)
    distances: NDArray[np.float32] = np.asarray(left / known["left"] + odd, np.float32)
    return distances


def _features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Each of (n, 784) twice, (n, 1568): as light as it is, and as light as most: of a faint one much counts, too."""
    floats = images.astype(np.float32) / 255
    lengths = np.linalg.norm(floats, axis=1, keepdims=True)
    return np.concatenate([floats, floats * (_USUAL_LENGTH / lengths.clip(0.1))], axis=1)


def learn(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What the file holds, from the training images (n, 28, 28)."""
    flat = _features(images.reshape(len(images), -1))
    mean = flat.mean(axis=0)
    variances, components = np.linalg.eigh(np.cov(flat, rowvar=False))
    known = {
        "mean": mean.astype(np.float16).astype(np.float32),
        "components": components.T[::-1][:_COMPONENTS].astype(np.float16).astype(np.float32),
        "variances": variances[::-1][:_COMPONENTS].astype(np.float32),
        # The rest's variance for each of its directions, as probabilistic PCA has it.
        "left": np.array([variances[:-_COMPONENTS].mean()], np.float32),
    }
    distances = _distances(images.reshape(len(images), -1), known)
    return known | {"distances": np.quantile(distances, _QUANTILES), "shares": _QUANTILES}


def _write() -> None:
    images = np.frombuffer((RAW_DIR / TRAIN_IMAGES).read_bytes(), np.uint8, offset=16).reshape(-1, 784)
    known = {name: values.astype(np.float32) for name, values in learn(images).items()}
    for name in ("mean", "components"):
        known[name] = known[name].astype(np.float16)
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **known)
    write_bytes(Path(__file__).with_name(_FILE), stream.getvalue())


if __name__ == "__main__":
    _write()
