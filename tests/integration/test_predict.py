"""`lenet5 predict` on real images, and on what people give it by mistake."""

import gzip
import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lenet5.data.fashion_mnist import TEST_IMAGES, TEST_LABELS
from lenet5.network.lenet5 import LeNet5
from lenet5.params import ModelParams
from lenet5.results.evaluation import feature_maps
from lenet5.results.export import to_onnx, to_program
from lenet5.results.inside import LAYERS, look_inside
from tests.params import CONTENT

from .conftest import Project

NAME = "lenet5-fashionmnist"
LENET5 = ("lenet5",)


def predict(project: Project, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return project.run(*LENET5, "predict", *map(str, words), check=check)


def answers(project: Project, *words: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(predict(project, "--json", *words).stdout)
    return found


@pytest.fixture(scope="module")
def images(data: Path) -> NDArray[np.uint8]:
    """The first 200 test images."""
    content = (data / TEST_IMAGES).read_bytes()
    return np.frombuffer(content, np.uint8, 200 * 784, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def expected(finished: Project) -> pd.DataFrame:
    """What the pipeline's own evaluation, with PyTorch, made of them."""
    return pd.read_csv(finished.path / "plots/predictions.csv")[:200]


@pytest.fixture
def written(tmp_path: Path, images: NDArray[np.uint8]) -> list[Path]:
    """The images as untouched PNG files."""
    paths = [tmp_path / f"{number:03}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_the_test_images_are_answered_as_the_evaluation_answers_them(
    finished: Project, written: list[Path], expected: pd.DataFrame
) -> None:
    found = answers(finished, *written)
    assert [answer["image"] for answer in found] == [str(path) for path in written]
    assert [answer["classes"][0]["class"] for answer in found] == expected["predicted"].tolist()
    probabilities = [answer["classes"][0]["probability"] for answer in found]
    np.testing.assert_allclose(probabilities, expected["probability"], atol=1e-5)
    for answer in found:
        shown = [entry["probability"] for entry in answer["classes"]]
        assert len(shown) == 10
        assert sum(shown) == pytest.approx(1)
        assert shown == sorted(shown, reverse=True)


def test_negated_they_get_the_very_same_answer(finished: Project, written: list[Path]) -> None:
    before = answers(finished, *written)
    for path in written:
        ImageOps.invert(Image.open(path)).save(path)
    assert answers(finished, *written) == before


def shop_window(image: Image.Image) -> Image.Image:
    """Dark, enlarged and off the centre of a white picture in colour, as a shop shows it."""
    picture = Image.new("RGB", (800, 600), "white")
    picture.paste(ImageOps.invert(image.resize((420, 420), Image.Resampling.BICUBIC)), (330, 40))
    return picture


def cut_out(image: Image.Image) -> Image.Image:
    """In its own colours, enlarged, on a transparent background."""
    large = image.resize((280, 280), Image.Resampling.NEAREST)
    picture = Image.merge("LA", (ImageOps.invert(large), large.point(lambda value: 255 if value else 0)))
    return ImageOps.expand(picture, 50, fill=(0, 0))


@pytest.mark.parametrize(
    ("change", "suffix"), [(shop_window, "png"), (shop_window, "jpg"), (shop_window, "webp"), (cut_out, "png")]
)
def test_enlarged_on_white_or_cut_out_nearly_all_get_the_same_class(
    finished: Project, written: list[Path], expected: pd.DataFrame, tmp_path: Path, change: Any, suffix: str
) -> None:
    originals = written[:100]
    changed = [tmp_path / f"changed-{path.stem}.{suffix}" for path in originals]
    for path, new in zip(originals, changed, strict=True):
        change(Image.open(path)).save(new)
    found = [answer["classes"][0]["class"] for answer in answers(finished, *changed)]
    assert np.mean(np.array(found) == expected["predicted"][:100].to_numpy()) > 0.9


def test_a_table_shows_three_classes_for_each_picture(
    finished: Project, written: list[Path], expected: pd.DataFrame
) -> None:
    odd = written[1].rename(written[1].with_name("a [red] one [bold].png"))
    done = finished.run(*LENET5, "predict", str(written[0]), str(odd), COLUMNS="200")
    assert done.stderr == ""
    for path, name in zip((written[0], odd), expected["predicted"], strict=False):
        (line,) = [line for line in done.stdout.splitlines() if path.name in line]
        assert name in line
        assert line.count("%") == 3
    by = "Answered by models/lenet5.onnx, the model of this workspace; --model champion takes the champion"
    assert done.stdout.splitlines()[-1] == by


def test_a_picture_that_is_unlike_all_it_was_trained_on_is_told(
    finished: Project, written: list[Path], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    said = predict(finished, written[0], tmp_path / "noise.png").stdout
    (line,) = [line for line in said.splitlines() if "do not trust the answer" in line]
    assert line.startswith(f"{tmp_path / 'noise.png'}: more unlike the training images than 99.9% of them")
    usual, unusual = answers(finished, written[0], tmp_path / "noise.png")
    assert usual["unlike"] < 0.99 < unusual["unlike"]


def test_each_bad_picture_is_one_line_and_the_others_are_answered(
    finished: Project, written: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("This is no picture.")
    (tmp_path / "broken.png").write_bytes(written[0].read_bytes()[:200])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    moving = [Image.new("L", (40, 40), value) for value in (0, 100)]
    moving[0].save(tmp_path / "moving.gif", save_all=True, append_images=moving[1:])
    said = {
        "gone.png": "no such file",
        ".": "is a directory",
        "text.png": "not a picture",
        "broken.png": "a broken picture",
        "huge.png": "more than 64 megapixels",
        "moving.gif": "2 pictures in one GIF file",
    }
    done = predict(finished, "--json", written[3], *(tmp_path / name for name in said), written[4], check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == len(said)
    for line, (name, reason) in zip(lines, said.items(), strict=True):
        assert line.startswith(f"lenet5 predict: {tmp_path / name}: ")
        assert reason in line
    assert [answer["image"] for answer in json.loads(done.stdout)] == [str(written[3]), str(written[4])]


def another_model(path: Path, kind: int, batch: str | int) -> Path:
    """A model with the right classes that takes images of another type, or so many at a time alone."""
    images = onnx.helper.make_tensor_value_info("images", kind, [batch, 1, 28, 28])
    logits = onnx.helper.make_tensor_value_info("logits", kind, [batch, 10])
    weights = onnx.helper.make_tensor("weights", kind, [784, 10], np.zeros(7840))
    nodes = [
        onnx.helper.make_node("Flatten", ["images"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "another", [images], [logits], [weights])
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    return path


def test_bad_models_are_one_line(finished: Project, written: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("This is no model.")
    (tmp_path / "packed.onnx").write_bytes(gzip.compress((finished.path / "models/lenet5.onnx").read_bytes()))
    for model, reason in {
        tmp_path / "gone.onnx": "no such model; `dvc repro export`",
        tmp_path: "is a directory",
        tmp_path / "text.onnx": "not an ONNX model",
        tmp_path / "packed.onnx": "not an ONNX model",
        finished.path / "models/lenet5.pth": "not an ONNX model",
        another_model(tmp_path / "double.onnx", onnx.TensorProto.DOUBLE, "batch"): "tensor(double)",
        another_model(tmp_path / "eight.onnx", onnx.TensorProto.FLOAT, 8): "it must take (batch, 1, 28, 28) floats",
    }.items():
        done = predict(finished, written[0], "--model", model, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"lenet5 predict: {model}: ")
        assert reason in line


@pytest.mark.parametrize("words", [("--json",), ("--maps", "maps.png")])
def test_a_file_needs_neither_pytorch_nor_mlflow(
    finished: Project, written: list[Path], words: tuple[str, ...]
) -> None:
    absent = ("torch", "mlflow", "fastapi", *(() if "--maps" in words else ("pandas", "matplotlib", "onnx")))
    program = (
        "import sys; from lenet5.commands.cli import main\n"
        "try: main(['predict', *sys.argv[1:]])\n"
        f"finally: print([name for name in {absent!r} if name in sys.modules])"
    )
    assert finished.run("python", "-c", program, str(written[0]), *words).stdout.endswith("[]\n")


@pytest.mark.parametrize(
    "recipe",
    [{}, {"activation": "relu", "pooling": "max", "c3": "paper"}, {"activation": "leaky_relu"}],
    ids=["full", "paper", "leaky"],
)
def test_the_maps_of_the_exported_model_are_those_of_pytorch(images: NDArray[np.uint8], recipe: dict[str, Any]) -> None:
    torch.manual_seed(0)
    params = ModelParams(**CONTENT["model"] | {"activation": "tanh"} | recipe)
    model = LeNet5(params)
    inside = look_inside(to_onnx(to_program(model), 20, {}), "the model")
    assert (inside.activation, inside.pooling) == (params.activation, params.pooling)
    np.testing.assert_array_equal(inside.kernels, model.c1.weight.detach().numpy()[:, 0])
    expected = feature_maps(model, torch.from_numpy(images[0].copy()))
    found = inside.maps(images[0])
    assert list(found) == list(expected) == list(LAYERS)
    for name, maps in expected.items():
        np.testing.assert_allclose(found[name], maps.numpy(), atol=1e-5)


def test_the_maps_are_drawn_as_the_pipeline_draws_them(finished: Project, data: Path, tmp_path: Path) -> None:
    labels = np.frombuffer((data / TEST_LABELS).read_bytes(), np.uint8, offset=8)
    pixels = np.frombuffer((data / TEST_IMAGES).read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    Image.fromarray(pixels[np.argmax(labels == 9)]).save(tmp_path / "shoe.png")
    for kind in ("png", "jpg", "pdf"):
        predict(finished, tmp_path / "shoe.png", "--maps", tmp_path / f"maps.{kind}")
        assert (tmp_path / f"maps.{kind}").stat().st_size > 10_000
    with Image.open(finished.path / "plots/feature_maps.png") as drawn, Image.open(tmp_path / "maps.png") as own:
        assert own.size == drawn.size
        difference = np.abs(np.asarray(own, int) - np.asarray(drawn.convert("RGB"), int))
    assert difference.max() <= 2  # of 255; sums are rounded otherwise


def test_maps_that_cannot_be_drawn_are_one_line_and_nothing_is_written(
    finished: Project, written: list[Path], tmp_path: Path
) -> None:
    before = written[0].read_bytes()
    flat = another_model(tmp_path / "flat.onnx", onnx.TensorProto.FLOAT, "batch")
    place = tmp_path / "maps"
    place.mkdir()
    for words, reason in (
        ((written[0], "--maps", tmp_path / "gone/maps.png"), f"no folder {tmp_path / 'gone'}; make it first"),
        ((written[0], "--maps", place / "maps.svg"), "no picture is written there"),
        ((written[0], "--maps", place / "maps.xbm"), "cannot write mode RGB as XBM"),
        ((written[0], "--maps", place / "maps"), "no picture is written there"),
        ((written[0], "--maps", place), "no picture is written there"),
        ((written[0], "--maps", written[0]), "that is the picture itself"),
        ((*written[:2], "--maps", place / "maps.png"), "of one picture, not of 2"),
        (
            (written[0], "--maps", place / "maps.png", "--model", flat),
            "`dvc repro --force --single-item export` makes one with them",
        ),
        ((tmp_path / "gone.png", "--maps", place / "maps.png"), "no such file"),
    ):
        done = predict(finished, *words, check=False)
        assert (done.returncode, done.stdout) == (1, ""), words
        (line,) = done.stderr.splitlines()
        assert reason in line
    assert list(place.iterdir()) == []
    assert written[0].read_bytes() == before


def test_the_champion_answers_by_its_name_or_says_why_not(
    pipeline_copy: Project, written: list[Path], tmp_path: Path
) -> None:
    champion = f"models:/{NAME}@champion"
    by_name = answers(pipeline_copy, *written[:9], "--model", champion)
    assert by_name == answers(pipeline_copy, *written[:9], "--model", "champion")
    assert {answer["model"] for answer in by_name} == {champion}
    for answer, own in zip(by_name, answers(pipeline_copy, *written[:9]), strict=True):
        assert answer == own | {"model": champion}
    unknown = predict(pipeline_copy, written[0], "--model", f"models:/{NAME}@nobody", check=False)
    with closing(sqlite3.connect(pipeline_copy.path / "mlflow.db")) as record, record:
        record.execute("UPDATE model_versions SET storage_location = ?", [(tmp_path / "gone").as_uri()])
    lost = predict(pipeline_copy, written[0], "--model", champion, check=False)
    (pipeline_copy.path / "mlflow.db").unlink()
    none = predict(pipeline_copy, written[0], "--model", champion, check=False)
    for done, reason in (
        (unknown, "alias nobody not found"),
        (lost, "not where MLflow's record says"),
        (none, "no MLflow record here"),
    ):
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert reason in line
    assert not (pipeline_copy.path / "mlflow.db").exists()
