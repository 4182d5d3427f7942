"""What the exported model says about pictures, with ONNX Runtime alone: no PyTorch, and MLflow only for its URIs."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.special import softmax

from lenet5.data.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.data.images import read_image, to_input
from lenet5.data.likeness import unlikeness, warning
from lenet5.errors import UserError
from lenet5.files import write_bytes
from lenet5.outs import ONNX
from lenet5.workspace import PARAMS_FILE, PIPELINE_FILE

SHOWN = 3

CHAMPION = "champion"

_MODEL_URIS = ("models:/", "runs:/")


def predict(paths: Sequence[Path], reference: str, as_json: bool, maps: Path | None) -> int:
    """Print the likeliest classes of each picture; one line on stderr for each that is none.

    Where ``maps`` names a file, what the layers make of the one picture is drawn there.
    Returns the exit status: 1 when a picture could not be answered. Raises UserError where the model cannot be used,
    or the file not be written.
    """
    if maps:
        _check_place(maps, paths)
    reference = resolved(reference)
    model = read_model(reference)
    session = load_session(model, reference)
    read = _read_all(paths)
    if maps and read:
        _write_picture(maps, draw_maps(model, reference, read[0][1]))
    answers = [
        {
            "image": str(path),
            "model": reference,
            "unlike": unlikeness(image),
            "classes": ranked(probabilities(session, image)),
        }
        for path, image in read
    ]
    if as_json:
        print(json.dumps(answers, indent=2))
    elif answers:
        _print_table(answers)
        print(f"Answered by {described(reference)}")
    return 0 if len(read) == len(paths) else 1


def resolved(reference: str) -> str:
    """``reference``; the word champion as the URI that MLflow knows it by."""
    if reference != CHAMPION:
        return reference
    from lenet5.params import load_params

    return f"models:/{load_params(PARAMS_FILE).register_.model_name}@{CHAMPION}"


def described(reference: str) -> str:
    """Which model that is, for people; and how to have another, where it is the one that nobody chose."""
    if reference == str(ONNX):
        return f"{reference}, the model of this workspace; --model {CHAMPION} takes the champion"
    return reference


def is_model_uri(reference: str) -> bool:
    """Whether MLflow resolves ``reference``; otherwise it is a file."""
    return reference.startswith(_MODEL_URIS)


def read_model(reference: str) -> bytes:
    """The ONNX model in a file, or at an MLflow URI such as ``models:/NAME@champion``."""
    if is_model_uri(reference):
        from lenet5.record.reading import fetch_onnx

        return fetch_onnx(reference)
    try:
        return Path(reference).read_bytes()
    except FileNotFoundError:
        here = PIPELINE_FILE.is_file()
        mends = f"`dvc repro export` makes {ONNX}" if here else f"run from the folder that holds {PIPELINE_FILE}"
        raise UserError(f"{reference}: no such model; {mends}, and --model takes another") from None
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
    (logits,) = session.run(None, {session.get_inputs()[0].name: to_input(image)})
    result: NDArray[np.float64] = softmax(logits[0].astype(np.float64))
    return result


def ranked(row: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Every class with its probability, of (10,), the likeliest first."""
    return [{"class": CLASSES[index], "probability": float(row[index])} for index in np.argsort(-row, kind="stable")]


def draw_maps(model: bytes, name: str, image: NDArray[np.uint8]) -> bytes:
    """What C1, S2, C3 and S4 of ``model`` make of an image (28, 28), as PNG; for one thread at a time.

    Raises UserError where the model has no such layers.
    """
    from lenet5.results.figures import feature_maps
    from lenet5.results.inside import look_inside

    inside = look_inside(model, name)
    return feature_maps(image.astype(np.float64), inside.kernels, inside.maps(image), inside.activation, inside.pooling)


def _check_place(maps: Path, paths: Sequence[Path]) -> None:
    """Raise UserError where the maps of ``paths`` cannot be written to the file ``maps``."""
    if len(paths) > 1:
        raise UserError(f"--maps {maps}: it holds the maps of one picture, not of {len(paths)}; give them one by one")
    if not maps.parent.is_dir():
        raise UserError(f"--maps {maps}: no folder {maps.parent}; make it first")
    if maps.is_dir() or Image.registered_extensions().get(maps.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--maps {maps}: no picture is written there; give a file that ends in .png")
    if maps.exists() and paths[0].exists() and maps.samefile(paths[0]):
        raise UserError(f"--maps {maps}: that is the picture itself; name another file")


def _write_picture(path: Path, png: bytes) -> None:
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    try:
        image.save(stream, Image.registered_extensions()[path.suffix.lower()])
    except Exception as error:  # what Pillow's encoders raise for a picture that is not of their kind
        raise UserError(f"--maps {path}: {error}; give a file that ends in .png") from None
    write_bytes(path, stream.getvalue())


def _read_all(paths: Sequence[Path]) -> list[tuple[Path, NDArray[np.uint8]]]:
    read = []
    for path in paths:
        try:
            read.append((path, read_image(path)))
        except UserError as error:
            print(f"lenet5 predict: {' '.join(str(error).split())}", file=sys.stderr)
    return read


def _print_table(answers: Sequence[dict[str, Any]]) -> None:
    table = Table("image", "likeliest", "second", "third")
    table.columns[0].overflow = "fold"
    for answer in answers:
        likeliest = answer["classes"][:SHOWN]
        table.add_row(answer["image"], *(f"{entry['class']} {entry['probability']:.1%}" for entry in likeliest))
    Console(markup=False, highlight=False).print(table)
    for answer in answers:
        if said := warning(answer["unlike"]):
            print(f"{answer['image']}: {said}")
