"""The registered model where nothing of this project is: MLflow's server, and the container that MLflow builds."""

import base64
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from .conftest import REPOSITORY, Project, wait_until
from .servers import answers, free_port

INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT"}
BOOT = base64.b64encode((REPOSITORY / "docs/img/boot.png").read_bytes()).decode()


@pytest.fixture(scope="module")
def model(finished: Project) -> Path:
    """The champion's folder."""
    version = finished.mlflow().get_model_version_by_alias("lenet5-fashionmnist", "champion")
    (folder,) = finished.path.glob(f"mlruns/*/models/{version.source.removeprefix('models:/')}/artifacts")
    return folder


def test_a_stranger_gets_class_probabilities_and_logits_of_pictures_and_of_grey_levels(
    finished: Project, model: Path, tmp_path: Path
) -> None:
    port = free_port()
    images = np.random.default_rng(0).random((3, 1, 28, 28)).astype(np.float32)
    session = onnxruntime.InferenceSession(finished.path / "models/lenet5.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": images})

    def post(inputs: object) -> list[dict[str, Any]]:
        body = json.dumps({"inputs": inputs}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            found: list[dict[str, Any]] = json.load(response)["predictions"]
            return found

    elsewhere = Project(tmp_path, tmp_path)
    del elsewhere.env["PYTHONPATH"]
    command = ("mlflow", "models", "serve", "-m", str(model), "--env-manager", "local", "--port", str(port))
    with elsewhere.started(*command):
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/ping"))
        (boot,) = post([BOOT])
        assert boot["class"] == "Ankle boot"
        assert boot["probabilities"]["Ankle boot"] == max(boot["probabilities"].values())
        np.testing.assert_allclose([one["logits"] for one in post(images.tolist())], expected, rtol=1e-5, atol=1e-5)


def test_the_model_brings_all_the_code_it_needs(model: Path, tmp_path: Path) -> None:
    program = (
        "import sys, mlflow\n"
        f"model = mlflow.pyfunc.load_model({str(model)!r})\n"
        f"print(model.predict({{'images': [{BOOT!r}]}})[0]['class'])\n"
        "import lenet5; print(lenet5.__file__); print(sorted({'torch', 'dvc', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    said, file, others = done.stdout.splitlines()
    assert (said, others) == ("Ankle boot", "[]")
    assert Path(file).is_relative_to(model), "it is the installed package that answered"


def test_mlflow_writes_a_dockerfile_that_has_what_it_names(model: Path, tmp_path: Path) -> None:
    command = ["mlflow", "models", "generate-dockerfile", "-m", str(model), "-d", str(tmp_path / "server")]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    text = (tmp_path / "server/Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [line.split() for line in lines]
    assert [line[0] for line in words if line[0] not in INSTRUCTIONS] == []
    assert words[0][0] == "FROM"
    for _, source, *_ in (line for line in words if line[0] == "COPY"):
        assert (tmp_path / "server" / source / "MLmodel").is_file()
    (entry,) = [line for line in lines if line.startswith("ENTRYPOINT")]
    assert json.loads(entry.removeprefix("ENTRYPOINT"))[0] == "python"
    assert {line.partition("==")[0] for line in (model / "requirements.txt").read_text().splitlines()} == {
        "mlflow",
        "numpy",
        "onnxruntime",
        "pillow",
        "scipy",
    }
