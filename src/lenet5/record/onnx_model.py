"""An ONNX file as a model of MLflow's, in its store and out of it, and MLflow's server of one."""

import base64
import io
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from fastapi import FastAPI
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Array, Map
from PIL import Image

from lenet5.data.fashion_mnist import IMAGE_SIZE
from lenet5.errors import UserError
from lenet5.record.advice import quiet_and_impatient

SERVED_CODE = (
    "errors.py",
    "files.py",
    "data/__init__.py",
    "data/fashion_mnist.py",
    "data/framing.py",
    "data/images.py",
)
"""The modules that ``served_model.py`` needs where this package is not installed."""

_REQUIRED = ("onnxruntime", "numpy", "pillow", "scipy", "mlflow")
_PACKAGE = Path(__file__).parents[1]


@contextmanager
def _model_facts(onnx: Path) -> Iterator[dict[str, Any]]:
    """What MLflow keeps of the model in the file ``onnx``: what goes in and out, what runs it and what that needs."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, _PACKAGE.name)
        for name in SERVED_CODE:
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_PACKAGE / name, code / name)
        (code / "__init__.py").touch()
        yield {
            "python_model": str(_PACKAGE / "record/served_model.py"),
            "artifacts": {"onnx": str(onnx)},
            "code_paths": [str(code)],
            "signature": ModelSignature(
                inputs=Schema([ColSpec(AnyType(), "images")]),
                outputs=Schema(
                    [
                        ColSpec(DataType.string, "class"),
                        ColSpec(Map(DataType.double), "probabilities"),
                        ColSpec(Array(DataType.double), "logits"),
                    ]
                ),
            ),
            "input_example": {"images": [_picture()]},
            "metadata": {"images": "a picture's bytes as base64, or 28 x 28 grey levels, from 0 to 1 or up to 255"},
            "pip_requirements": [f"{name}=={installed(name)}" for name in _REQUIRED],
        }


def _picture() -> str:
    """The smallest example of what the model takes: black, as base64."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def pack_model(onnx: Path, folder: Path) -> Path:
    """Make the ONNX model in a file, which is in no store, an MLflow model in ``folder``; returns ``folder``."""
    quiet_and_impatient()
    with _no_advice():
        from mlflow.pyfunc import save_model

        with _model_facts(onnx) as facts:
            save_model(folder, **facts)
    return folder


def log_model(uri: str, run_id: str, onnx: Path, tags: dict[str, str]) -> str:
    """Log the ONNX model in a file as a model of the run; gives the model's id."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    before = client.get_run(run_id).info
    with _no_advice():
        from mlflow.pyfunc import log_model

        with mlflow.start_run(run_id=run_id), _model_facts(onnx) as facts:
            model_id = str(log_model(name="onnx", tags=tags, **facts).model_id)
    if before.end_time:  # what is logged to has begun again and ended now, for MLflow
        client.set_terminated(run_id, before.status, before.end_time)
    return model_id


def _no_advice() -> AbstractContextManager[object]:
    """MLflow warns of type hints, its own among them."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def onnx_file(folder: Path, name: str) -> Path:
    """Where the MLflow model in ``folder`` keeps its ONNX file. Raises UserError, which calls it ``name``, without."""
    flavors = Model.load(folder).flavors
    if "onnx" in flavors:  # as earlier releases logged it
        return folder / str(flavors["onnx"]["data"])
    kept = flavors.get("python_function", {}).get("artifacts", {}).get("onnx")
    if kept is None:
        raise UserError(f"{name}: a model without an ONNX file, which is what the stage register logs")
    return folder / str(kept["path"])


def scoring_app(folder: Path) -> FastAPI:
    """MLflow's scoring server of the model in ``folder``: /ping, /health, /version and /invocations."""
    quiet_and_impatient()
    with _no_advice():
        from mlflow.pyfunc import load_model, scoring_server

        app: FastAPI = scoring_server.init(load_model(str(folder)))
    return app
