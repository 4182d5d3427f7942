"""Every picture the project draws; the only module that imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lenet5.convolution import Array, corr2d
from lenet5.edge_kernel import EDGE_KERNEL, LearnedKernel, edge_image
from lenet5.files import atomic_path

STYLE = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]),  # Okabe and Ito
}


def draw_kernel_check(path: Path, learned: Sequence[LearnedKernel], tolerance: float) -> None:
    """The edge image, its response to [1, -1] and to the kernel transposed, and how each seed learned the kernel."""
    image = edge_image()
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stub wants each key as a literal
        figure = Figure(figsize=(11, 6), layout="constrained")
        pictures, curves = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.2)))
        panels = pictures.subplots(1, 3)
        _show_matrix(panels[0], image, "image: white with a black bar", "gray")
        _show_matrix(panels[1], corr2d(image, EDGE_KERNEL), "response to [1, -1]: both edges", "RdBu")
        _show_matrix(panels[2], corr2d(image, EDGE_KERNEL.T), "response to [1, -1] transposed: no edge", "RdBu")
        loss_axes, kernel_axes = curves.subplots(1, 2)
        for one in learned:
            loss_axes.semilogy(range(1, len(one.losses) + 1), one.losses, label=f"seed {one.seed}")
        loss_axes.set(
            xlabel="gradient step",
            ylabel="squared error, summed",
            title="learning the kernel from its response",
        )
        loss_axes.legend(frameon=False)
        _show_learned(kernel_axes, learned, tolerance)
        with atomic_path(path) as beside:
            figure.savefig(beside, dpi=120, metadata={"Software": None})


def _show_matrix(axes: Axes, matrix: Array, title: str, colours: str) -> None:
    axes.imshow(matrix, cmap=colours, vmin=-1 if colours == "RdBu" else 0, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        dark = value < 0.5 if colours == "gray" else abs(value) > 0.5
        axes.text(column, row, f"{value:g}", ha="center", va="center", color="white" if dark else "black")
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="0.6")


def _show_learned(axes: Axes, learned: Sequence[LearnedKernel], tolerance: float) -> None:
    axes.axhline(1, color="0.6", linewidth=1)
    axes.axhline(-1, color="0.6", linewidth=1)
    places = np.arange(len(learned))
    for column, marker in ((0, "^"), (1, "v")):
        axes.plot(places, [one.kernel[0, column] for one in learned], marker, label=f"weight {column + 1}")
    axes.set(
        title=f"learned weights, all within {tolerance:g} of [1, -1]",
        xlabel="seed",
        ylim=(-1.4, 1.4),
    )
    axes.set_xticks(places, [str(one.seed) for one in learned])
    axes.legend(frameon=False, loc="center")
