"""Every picture the project draws; the only module that imports matplotlib.

A picture's background is white on every page, its colours are told apart by colour-blind eyes, and the same
inputs give the same bytes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lenet5.data.fashion_mnist import CLASSES, IMAGE_SIZE
from lenet5.files import write_bytes
from lenet5.network.convolution import Array, corr2d
from lenet5.network.edges import KERNELS, LearnedKernel, edge_image

BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"  # Okabe and Ito
SPLIT_COLOURS = {"train": BLUE, "validation": VERMILION, "test": GREEN}
STYLE = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE]),
    "grid.color": "0.9",
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}
MISTAKES = (4, 8)  # rows and columns of the sheet
SAMPLES = 16  # images of each class
FEW_EPOCHS = 25  # up to which each gets a dot


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` by ``height`` inches, written to ``path`` when the block ends well."""
    with _styled(width, height) as figure:
        yield figure
        write_bytes(path, _png(figure))


@contextmanager
def _styled(width: float, height: float) -> Iterator[Figure]:
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stub wants each key as a literal
        yield Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def draw_curves(path: Path, history: pd.DataFrame, chosen_epoch: int, onset: int | None) -> None:
    """Loss and accuracy by epoch; the gap between training and validation images is shaded, darker after ``onset``."""
    with picture(path, 11, 5) as figure:
        for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            _draw_measure(axes, history, measure, onset)
            _mark_epochs(axes, chosen_epoch, onset)
        figure.axes[0].set(title="loss", ylabel="cross-entropy (nats)")
        figure.axes[0].set_ylim(0, 1.05 * float(np.nanmax(_later(history, "loss"))))
        figure.axes[1].set(title="accuracy", ylabel="images classified rightly")
        lowest, highest = float(np.nanmin(_later(history, "accuracy"))) - 0.01, figure.axes[1].get_ylim()[1]
        figure.axes[1].set_ylim(lowest, min(highest, 1.005))
        figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _later(history: pd.DataFrame, measure: str) -> Array:
    """The curves without the first tenth, in which they move so far that no gap could be seen beside that."""
    columns = [f"{name}_{measure}" for name in SPLIT_COLOURS]
    return history.loc[history["epoch"] > len(history) / 10, columns].to_numpy(float)


def _draw_measure(axes: Axes, history: pd.DataFrame, measure: str, onset: int | None) -> None:
    epochs, last = history["epoch"], history["epoch"].iloc[-1]
    curves = {name: history[f"{name}_{measure}"] for name in ("train", "validation", "test")}
    other = "test" if curves["validation"].isna().all() else "validation"
    gap = (epochs, curves["train"], curves[other])
    axes.fill_between(
        *gap, epochs <= (onset or last), color="0.88", linewidth=0, label=f"gap from training to {other} images"
    )
    if onset is not None and onset < last:
        label = f"gap after epoch {onset}, the onset of overfitting"
        axes.fill_between(*gap, epochs >= onset, color=ORANGE, alpha=0.5, linewidth=0, label=label)
    labels = {"train": "training (fixed sample)", "validation": "validation", "test": "test"}
    for (name, values), line in zip(curves.items(), ("-", "-", "--"), strict=True):
        if values.notna().any():
            marker = "." if last <= FEW_EPOCHS else None
            axes.plot(epochs, values, line, color=SPLIT_COLOURS[name], marker=marker, label=labels[name])
    axes.set(xlabel="epoch", xlim=(0, last + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True)


def _mark_epochs(axes: Axes, chosen_epoch: int, onset: int | None) -> None:
    kept = f"epoch {chosen_epoch}: these weights are kept"
    if onset is None:
        kept = f"epoch {chosen_epoch}: the last weights are kept; no validation images, so no onset of overfitting"
    if onset not in (None, chosen_epoch):
        axes.axvline(onset, color="0.35", linestyle=":", label=f"epoch {onset}: lowest validation loss")
    elif onset:
        kept = f"epoch {onset}: lowest validation loss, these weights are kept"
    axes.axvline(chosen_epoch, color="0.35", linewidth=1, label=kept)


def draw_comparison(path: Path, histories: Mapping[str, pd.DataFrame]) -> None:
    """Loss and accuracy by epoch of several results, by name: of the validation images, or the test images."""
    with picture(path, 11, 4.5) as figure:
        colours = cycler(linestyle=["-", "--", ":", "-."]) * mpl.rcParams["axes.prop_cycle"]
        for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            axes.set_prop_cycle(colours)
            for name, history in histories.items():
                held_out = history[f"validation_{measure}"]
                other = held_out.isna().all()
                values = history[f"test_{measure}"] if other else held_out
                marker = "." if len(history) <= FEW_EPOCHS else None
                axes.plot(history["epoch"], values, marker=marker, label=f"{name}, test images" if other else name)
            axes.set(title=f"{measure} on the validation images", xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(visible=True)
        figure.axes[0].set_ylabel("cross-entropy (nats)")
        figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)


def draw_confusion(path: Path, predictions: pd.DataFrame) -> None:
    """How many images of each class (row) were taken for which class (column)."""
    counts = pd.crosstab(predictions["true"], predictions["predicted"])
    counts = counts.reindex(index=CLASSES, columns=CLASSES, fill_value=0)
    shares = counts.to_numpy() / np.maximum(counts.to_numpy().sum(axis=1, keepdims=True), 1)
    right = np.trace(counts.to_numpy())
    with picture(path, 8.5, 7.5) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        for (row, column), count in np.ndenumerate(counts.to_numpy()):
            if count:
                colour = "white" if shares[row, column] > 0.3 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour)
        axes.set(
            title=f"confusion on the test images: {right:,} of {len(predictions):,} are right, on the diagonal\n"
            "the darker, the larger the share of the true class"
        )
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(CLASSES)), CLASSES)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def draw_classes(path: Path, classes: Mapping[str, Mapping[str, float]]) -> None:
    """Precision, recall and F1 of each class, the hardest class at the bottom."""
    names = sorted(classes, key=lambda name: classes[name]["f1"])
    meanings = {
        "precision": "precision: right, of the images called so",
        "recall": "recall: found, of the images that are so",
        "f1": "F1: harmonic mean of the two",
    }
    with picture(path, 9, 6.5) as figure:
        axes = figure.subplots()
        for offset, (score, meaning) in zip((0.27, 0, -0.27), meanings.items(), strict=True):
            values = [classes[name][score] for name in names]
            bars = axes.barh(np.arange(len(names)) + offset, values, 0.25, label=meaning)
            axes.bar_label(bars, fmt="{:.1%}", padding=3, fontsize=7)
        axes.set_yticks(range(len(names)), names)
        axes.set(title="how well each class is recognised in the test images", xlabel="score", xlim=(0, 1.05))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(visible=True, axis="x")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)


def draw_mistakes(path: Path, predictions: pd.DataFrame, images: Array) -> None:
    """The mistakes the model was surest of; ``images`` (n, 28, 28) are those of the rows of ``predictions``."""
    wrong = predictions[predictions["true"] != predictions["predicted"]]
    rows, columns = MISTAKES
    worst = wrong.sort_values("probability", ascending=False, kind="stable").head(rows * columns)
    with picture(path, 11, 8.2) as figure:
        figure.set_layout_engine("constrained", h_pad=0.1)
        figure.suptitle(
            f"the most confident of {len(wrong):,} mistakes on the test images: "
            "true class above, the model's answer and how sure it is below"
        )
        panels = figure.subplots(rows, columns).flat
        for axes in panels:
            axes.set_axis_off()
        for axes, image, (true, predicted, probability) in zip(
            figure.axes, images[worst.index], worst[["true", "predicted", "probability"]].to_numpy(), strict=False
        ):
            axes.set_axis_on()
            _show_image(axes, image)
            axes.set_title(true, fontsize=9, pad=3)
            axes.set_xlabel(f"{predicted}\n{_percent(probability)}", fontsize=9, color=VERMILION, labelpad=3)


def _percent(share: float) -> str:
    """99.96 % is not 100 %."""
    return f"{np.floor(share * 1000) / 10:.1f} %"


def draw_reliability(path: Path, table: pd.DataFrame, bins: int, error: float) -> None:
    """Accuracy against confidence, from the calibration ``table`` of so many ``bins``, and how often each occurs."""
    edges, width = table.index.to_numpy() / bins, 1 / bins
    with picture(path, 6.5, 7) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.bar(edges, table["accuracy"], width, align="edge", edgecolor="white", label="accuracy of the answers")
        upper.plot([0, 1], [0, 1], "--", color="0.35", label="perfect: right as often as it is sure")
        upper.plot(
            table["confidence"],
            table["accuracy"],
            "o",
            color=VERMILION,
            markersize=4,
            label="mean confidence and accuracy of the bin",
        )
        upper.set(title=f"reliability on the test images: calibration error {error:.1%}", ylabel="accuracy")
        upper.set(xlim=(0, 1), ylim=(0, 1))
        figure.legend(loc="outside lower center", fontsize=9)
        lower.bar(edges, table["share"], width, align="edge", edgecolor="white", color="0.6")
        lower.set(xlabel="confidence: the probability the model gives its answer", ylabel="share of images")
        for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        upper.grid(visible=True)


def feature_maps(image: Array, kernels: Array, maps: Mapping[str, Array], activation: str, pooling: str) -> bytes:
    """One image (28, 28), the C1 ``kernels`` (6, 5, 5), and the (maps, height, width) that each layer makes of it.

    As PNG. Not for two threads at once: matplotlib's settings are the whole process's.
    """
    convolution, pool = f"convolution, then {activation}", f"{pooling} pooling over 2 x 2"
    rows = {name: f"{name}: {step}" for name, step in zip(maps, (convolution, pool) * 2, strict=True)}
    with _styled(11, 7.9) as figure:
        figure.suptitle("what LeNet-5 makes of one image, layer by layer")
        top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(2.5, 1)))
        left, right = top.subfigures(1, 2, width_ratios=(1, 3))
        _show_image(axes := left.subplots(), image)
        axes.set_title("the image, 28 x 28")
        first, c1, s2 = right.subplots(3, 1)
        _show_kernels(first, kernels, f"the {len(kernels)} learned kernels of C1, 5 x 5; blue: positive, red: negative")
        for axes, name in zip((c1, s2, *bottom.subplots(2, 1)), maps, strict=True):
            count, height, width = maps[name].shape
            _show_maps(axes, maps[name], f"{rows[name]}; {count} maps of {height} x {width}")
        return _png(figure)


def draw_samples(path: Path, images: Array, labels: Array) -> None:
    """The first images (n, 28, 28) of each class, one class a row."""
    size = images.shape[-1] + 2
    with picture(path, 11, 7) as figure:
        axes = figure.subplots()
        sheet = np.vstack([_side_by_side(images[labels == label][:SAMPLES], SAMPLES) for label in range(len(CLASSES))])
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"FashionMNIST: {SAMPLES} training images of each class")
        axes.set_yticks((np.arange(len(CLASSES)) + 0.5) * size, CLASSES)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def _side_by_side(images: Array, columns: int) -> Array:
    """(n, h, w) with n up to ``columns`` -> (h + 2, columns * (w + 2)); NaN, drawn as nothing, between and after."""
    height, width = images.shape[1:]
    row = np.full((height + 2, columns, width + 2), np.nan)
    row[1:-1, : len(images), 1:-1] = images.transpose(1, 0, 2)
    return row.reshape(height + 2, -1)


def _show_kernels(axes: Axes, kernels: Array, title: str) -> None:
    limit = np.abs(kernels).max()
    axes.imshow(_row(kernels), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_axis_off()


def _show_maps(axes: Axes, maps: Array, title: str) -> None:
    """The maps of a layer on one scale, which lifts what is dim."""
    norm = PowerNorm(0.6, float(maps.min()), float(maps.max()))
    axes.imshow(_row(maps), cmap="gray", norm=norm, interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_axis_off()


def _row(maps: Array) -> Array:
    """All maps side by side, each blown up to about the size of an image, so that the gaps between are alike."""
    scale = IMAGE_SIZE // maps.shape[-1]
    return _side_by_side(maps.repeat(scale, axis=1).repeat(scale, axis=2), len(maps))


def _show_image(axes: Axes, image: Array) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_kernel_check(path: Path, learned: Mapping[str, Sequence[LearnedKernel]], tolerance: float) -> None:
    """The edge image, its responses to [1, -1] and to that transposed, and how each seed learned each of the two."""
    image = edge_image()
    names = {"vertical_edges": "[1, -1]", "horizontal_edges": "[1, -1] transposed"}
    with picture(path, 11, 6.2) as figure:
        pictures, curves = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.1)))
        panels = pictures.subplots(1, 3)
        _show_matrix(panels[0], image, "the image: white,\nwith two black rectangles", "gray")
        for axes, (edges, kernel) in zip(panels[1:], KERNELS.items(), strict=True):
            title = f"response to {names[edges]}:\n{edges.replace('_', ' ')}"
            _show_matrix(axes, corr2d(image, kernel), title, "RdBu")
        weights, *losses = curves.subplots(1, 3)
        losses[1].sharex(losses[0])
        losses[1].sharey(losses[0])
        for axes, (edges, trainings) in zip(losses, learned.items(), strict=True):
            for one in trainings:
                axes.semilogy(range(1, len(one.losses) + 1), one.losses, label=f"seed {one.seed}")
            axes.set(xlabel="gradient step", title=f"learning {names[edges]}")
        losses[0].set(ylabel="squared error, summed")
        if len(trainings) <= len(mpl.rcParams["axes.prop_cycle"]):  # of more, some would share a colour
            losses[1].legend()
        _show_learned(weights, learned, tolerance)


def _show_matrix(axes: Axes, matrix: Array, title: str, colours: str) -> None:
    axes.imshow(matrix, cmap=colours, vmin=-1 if colours == "RdBu" else 0, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        dark = value < 0.5 if colours == "gray" else abs(value) > 0.5
        axes.text(column, row, f"{value:g}", ha="center", va="center", color="white" if dark else "black")
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="0.6")


def _show_learned(axes: Axes, learned: Mapping[str, Sequence[LearnedKernel]], tolerance: float) -> None:
    for wanted in (1, -1):
        axes.axhline(wanted, color="0.6", linewidth=1)
    for (edges, trainings), shift, colour in zip(learned.items(), (-0.15, 0.15), (BLUE, VERMILION), strict=True):
        places = np.arange(len(trainings)) + shift
        for weight, marker in ((0, "^"), (1, "v")):
            label = f"{edges.replace('_', ' ')}, weight {weight + 1}"
            axes.plot(places, [one.kernel.flat[weight] for one in trainings], marker, color=colour, label=label)
        named = range(0, len(trainings), 1 + len(trainings) // 13)  # there is no room for more
        axes.set_xticks(named, [str(trainings[place].seed) for place in named])
    axes.set(title=f"learned weights, all within {tolerance:g}", xlabel="seed", ylim=(-1.4, 1.4))
    axes.legend(loc="center", fontsize=9)
