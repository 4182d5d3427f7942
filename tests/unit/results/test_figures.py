from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lenet5.data.fashion_mnist import CLASSES
from lenet5.network.edge_kernel import learn_kernel
from lenet5.network.edges import KERNELS
from lenet5.network.lenet5 import LeNet5
from lenet5.params import ModelParams
from lenet5.results import figures
from lenet5.results.evaluation import calibration_table, class_figures, feature_maps

IMAGES = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
LABELS = np.arange(200) % 10


def history(epochs: int, validation: bool = True) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    table = pd.DataFrame({"epoch": epoch})
    for name, loss in {"train": 2 / epoch, "validation": 2 / epoch + 0.01 * epoch, "test": 2.1 / epoch}.items():
        there = validation or name != "validation"
        table[f"{name}_loss"], table[f"{name}_accuracy"] = (loss, 1 - loss / 3) if there else (np.nan, np.nan)
    return table


def predictions(wrong: int) -> pd.DataFrame:
    names = np.array(CLASSES)
    answers = np.where(np.arange(200) < wrong, (LABELS + 1) % 10, LABELS)
    return pd.DataFrame({"true": names[LABELS], "predicted": names[answers], "probability": np.linspace(0.3, 1, 200)})


def maps_of(params: ModelParams, path: Path) -> None:
    torch.manual_seed(0)
    model = LeNet5(params)
    maps = {name: layer.numpy() for name, layer in feature_maps(model, torch.from_numpy(IMAGES[0])).items()}
    kernels = model.c1.weight.detach().numpy()[:, 0]
    picture = figures.feature_maps(IMAGES[0], kernels, maps, params.activation, params.pooling)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(picture)


PICTURES: dict[str, Callable[[Path], None]] = {
    "overfitting": lambda path: figures.draw_curves(path, history(60), 30, 14),
    "best weights": lambda path: figures.draw_curves(path, history(60), 14, 14),
    "no validation images": lambda path: figures.draw_curves(path, history(5, validation=False), 5, None),
    "one epoch": lambda path: figures.draw_curves(path, history(1), 1, 1),
    "confusion": lambda path: figures.draw_confusion(path, predictions(50)),
    "classes never predicted": lambda path: figures.draw_confusion(path, predictions(50).head(3)),
    "class scores": lambda path: figures.draw_classes(path, class_figures(predictions(50))),
    "mistakes": lambda path: figures.draw_mistakes(path, predictions(50), IMAGES),
    "one mistake": lambda path: figures.draw_mistakes(path, predictions(1), IMAGES),
    "no mistake": lambda path: figures.draw_mistakes(path, predictions(0), IMAGES),
    "reliability": lambda path: figures.draw_reliability(path, calibration_table(predictions(50), 15), 15, 0.1),
    "one bin": lambda path: figures.draw_reliability(path, calibration_table(predictions(50), 1), 1, 0.1),
    "samples": lambda path: figures.draw_samples(path, IMAGES, LABELS),
    "kernel check": lambda path: figures.draw_kernel_check(
        path, {edges: [learn_kernel(kernel, 0, 0.02, 1000, 1e-3)] for edges, kernel in KERNELS.items()}, 1e-3
    ),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_a_picture_is_sizeable_white_behind_and_the_same_every_time(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    paths = [tmp_path / "first/picture.png", tmp_path / "second/other.png"]
    for path in paths:
        draw(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as image:
        assert 600 <= min(image.size) <= max(image.size) <= 2000
        assert image.getpixel((1, 1)) == (255, 255, 255, 255)
        assert image.convert("L").getextrema()[0] < 100
        assert not image.info.keys() & {"Software", "Creation Time"}


@pytest.mark.parametrize(
    "changes",
    [{"activation": "sigmoid"}, {"activation": "tanh", "pooling": "max"}, {"activation": "relu", "c3": "paper"}],
    ids=str,
)
def test_feature_maps_are_drawn_for_every_kind_of_model(
    model_params: Callable[..., ModelParams], tmp_path: Path, changes: dict[str, Any]
) -> None:
    maps_of(model_params(**changes), tmp_path / "maps.png")
    with Image.open(tmp_path / "maps.png") as image:
        assert image.size[0] > 1000


@pytest.mark.parametrize(
    ("chosen", "onset", "lines"), [(14, 14, [14]), (60, 14, [14, 60]), (60, 60, [60]), (60, None, [60])]
)
def test_the_curves_mark_the_chosen_epoch_and_the_onset_of_overfitting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: int, onset: int | None, lines: list[int]
) -> None:
    marked: list[float] = []
    draw = Axes.axvline
    monkeypatch.setattr(Axes, "axvline", lambda axes, x, **style: (marked.append(x), draw(axes, x, **style))[1])
    figures.draw_curves(tmp_path / "curves.png", history(60), chosen, onset)
    assert marked == lines * 2  # in the loss, and in the accuracy


def test_the_first_epochs_do_not_flatten_the_gap_of_the_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    set_ylim = Axes.set_ylim
    monkeypatch.setattr(Axes, "set_ylim", lambda axes, *to, **how: (limits.extend(to), set_ylim(axes, *to, **how))[1])
    figures.draw_curves(tmp_path / "curves.png", history(60), 14, 14)
    highest = 2 / 60 + 0.01 * 60  # not the 2.1 of epoch 1
    for limit in (0, 1.05 * highest, 1 - highest / 3 - 0.01):
        assert pytest.approx(limit) in limits


def test_the_sheet_of_mistakes_shows_the_surest_ones(tmp_path: Path) -> None:
    def sheet(table: pd.DataFrame) -> bytes:
        figures.draw_mistakes(tmp_path / "sheet.png", table, IMAGES)
        return (tmp_path / "sheet.png").read_bytes()

    table = predictions(50)
    before = sheet(table)
    least, most = table["probability"][:50].idxmin(), table["probability"][:50].idxmax()
    assert sheet(table.assign(probability=table["probability"].mask(table.index == least, 0.2))) == before
    assert sheet(table.assign(probability=table["probability"].mask(table.index == most, 0.999))) != before


@pytest.mark.parametrize("seeds", [5, 12, 20, 100])
def test_the_picture_of_the_kernel_check_has_room_for_what_it_says_of_any_number_of_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    drawn: list[Figure] = []
    png = figures._png
    monkeypatch.setattr(figures, "_png", lambda figure: (drawn.append(figure), png(figure))[1])
    one = {edges: learn_kernel(kernel, 0, 0.02, 1000, 1e-3) for edges, kernel in KERNELS.items()}
    learned = {edges: [replace(one[edges], seed=seed) for seed in range(seeds)] for edges in KERNELS}
    figures.draw_kernel_check(tmp_path / "kernels.png", learned, 1e-3)
    drawn[0].draw_without_rendering()
    for axes in drawn[0].axes:
        labels = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in pairwise(labels))
        if legend := axes.get_legend():
            assert axes.bbox.y0 < legend.get_window_extent().y0 < legend.get_window_extent().y1 < axes.bbox.y1


def test_99_96_percent_is_not_shown_as_certain() -> None:
    assert [figures._percent(share) for share in (0.9996, 1.0, 0.5)] == ["99.9 %", "100.0 %", "50.0 %"]
