"""The model card: what a model is, how good it is, where its limits are, and how to make it again.

After M. Mitchell et al., "Model Cards for Model Reporting", 2019. ``evaluate`` writes the card, ``register`` adds
what only the record knows to a copy of it. The web page is the same text with its pictures inside.
"""

import base64
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lenet5.data.fashion_mnist import CLASSES, data_digest
from lenet5.outs import CLASS_SCORES, CONFUSION, CURVES, FEATURE_MAPS, MISTAKES, RELIABILITY, SAMPLES
from lenet5.params import TRAINING_IMAGES, Params, flat_params
from lenet5.results.verdict import accuracy_with_interval, points, verdict

if TYPE_CHECKING:  # register renders too, and has no use for torch
    from lenet5.network.lenet5 import Layer

TEST_IMAGES = 10_000


def summary(params: Params, history: pd.DataFrame, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The card in short, for where there is room for little: the verdict and the figures with their intervals."""
    held_out = params.data.validation_size
    names = {
        "train": ("training (a fixed sample)", min(params.data.train_sample, TRAINING_IMAGES - held_out)),
        "validation": ("validation", held_out),
        "test": ("test", TEST_IMAGES),
    }
    rows = [
        [name, f"{count:,}", _loss(evaluation[split]), accuracy_with_interval(evaluation[split])]
        for split, (name, count) in names.items()
        if split in evaluation
    ]
    gap, other = evaluation["gap"], "validation" if held_out else "test"
    return _paragraphs(
        verdict(history, training["chosen_epoch"], evaluation["onset_of_overfitting"], params),
        _table(["images", "number", "loss (nats)", "accuracy"], rows),
        f"In brackets: {100 * params.evaluate.confidence:g} % intervals, which tell how much chance there is in the "
        f"choice of images, not in the training. Overfitting gap between training and {other} images: "
        f"{gap['loss']:.3f} nats, {points(gap['accuracy'])} points of accuracy. "
        f"Calibration error: {evaluation['calibration_error']:.1%}.",
    )


def model_card(
    params: Params,
    history: pd.DataFrame,
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    architecture: Sequence["Layer"],
    predictions: pd.DataFrame,
) -> str:
    """The whole card as Markdown, its pictures named relative to the folder ``reports``."""
    return _paragraphs(
        "# Model card: LeNet-5 on FashionMNIST",
        "A convolutional network that says which of ten kinds of garment a grey picture of 28 x 28 pixels shows.",
        summary(params, history, training, evaluation),
        _picture(CURVES, "Loss and accuracy by epoch, with the overfitting gap shaded"),
        _model(params, architecture),
        _data(params),
        _results(evaluation),
        _limits(evaluation, predictions),
        _making(params, history, training),
    )


def completed(card: str, facts: Mapping[str, str]) -> str:
    """The card with what only the record knows of the model: each fact by its name."""
    return _paragraphs(card, "## In the record", _table(["what", "value"], [list(fact) for fact in facts.items()]))


def _model(params: Params, architecture: Sequence["Layer"]) -> str:
    rows = [
        [
            layer.name,
            " x ".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            f"{layer.receptive_field} x {layer.receptive_field}",
        ]
        for layer in architecture
    ]
    total = sum(layer.parameters for layer in architecture)
    return _paragraphs(
        "## The model",
        f"LeNet-5 (LeCun et al., 1998) as tutorials build it, {total:,} parameters: activation "
        f"{params.model.activation}, {params.model.pooling} pooling, C3 {params.model.c3}. Input: (batch, 1, 28, 28) "
        "floats, grey levels divided by 255, a light garment on black. Output: ten logits, in the order of the "
        f"classes: {', '.join(CLASSES)}.",
        _table(["layer", "output", "parameters", "sees, in pixels"], rows),
        _picture(FEATURE_MAPS, "The learned C1 kernels, and what C1, S2, C3 and S4 make of one image"),
    )


def _data(params: Params) -> str:
    held_out = params.data.validation_size
    validation = f"{held_out:,} images, drawn with seed {params.data.split_seed} and never trained on"
    if params.train.weights == "best_validation":
        validation += "; they decide which weights are kept"
    return _paragraphs(
        "## The data",
        "FashionMNIST (Xiao, Rasul and Vollgraf, 2017, [arXiv:1708.07747](https://arxiv.org/abs/1708.07747)): product "
        "photographs of a shop, 7,000 of each class.",
        f"- Training: {TRAINING_IMAGES - held_out:,} images\n"
        f"- Validation: {validation if held_out else 'none are held out'}\n"
        f"- Test: {TEST_IMAGES:,} images, which had no part in making it; whether it becomes champion is decided on "
        "them\n"
        f"- Digest of the four files' SHA-256: `{data_digest()}`",
        _picture(SAMPLES, "Training images of each class"),
    )


def _results(evaluation: Mapping[str, Any]) -> str:
    rows = [
        [name, *(f"{scores[score]:.1%}" for score in ("precision", "recall", "f1"))]
        for name, scores in evaluation["classes"].items()
    ]
    return _paragraphs(
        "## Results on the test images",
        _table(["class", "precision", "recall", "F1"], rows),
        _picture(CLASS_SCORES, "Precision, recall and F1 of each class"),
        _picture(CONFUSION, "Confusion matrix"),
        _picture(MISTAKES, "The most confident mistakes"),
        _picture(RELIABILITY, "Reliability diagram: accuracy against confidence"),
    )


def _limits(evaluation: Mapping[str, Any], predictions: pd.DataFrame) -> str:
    classes = evaluation["classes"]
    hardest = min(classes, key=lambda name: classes[name]["f1"])
    wrong = predictions[predictions["true"] != predictions["predicted"]]
    pairs = Counter(zip(wrong["true"], wrong["predicted"], strict=True)).most_common(3)
    mixed = [f"{true} taken for {predicted} ({count})" for (true, predicted), count in pairs]
    return _paragraphs(
        "## Limits",
        f"- Hardest class: {hardest}, F1 {classes[hardest]['f1']:.1%}. "
        f"Most frequent mistakes: {', '.join(mixed) or 'none'}.\n"
        "- Tested on FashionMNIST's own test images only: not on photographs from elsewhere, on worn garments, on "
        "several in one picture, on other sizes, on turned, noisy or manipulated images.\n"
        "- It always answers with one of the ten classes, also for a picture of none of them.\n"
        f"- Its probabilities are off by {evaluation['calibration_error']:.1%} on average; "
        "read them as a ranking rather than as odds where that matters.\n"
        "- One training from one seed: the intervals do not cover what another seed would give.\n"
        "- Made for learning and teaching, not for decisions about people or goods.",
    )


def _making(params: Params, history: pd.DataFrame, training: Mapping[str, Any]) -> str:
    values = flat_params(params, "data", "model", "train", "evaluate")
    return _paragraphs(
        "## How it was made, and how to make it again",
        f"Trained for {len(history)} epochs; the weights are those of epoch {training['chosen_epoch']} "
        f"(SHA-256 `{training['weights_sha256']}`). With these values in `params.yaml`, `dvc repro` makes the model "
        "again, byte for byte on the same kind of machine with the packages of `requirements.lock`; `dvc pull` fetches "
        "it where a DVC remote holds it.",
        _table(["param", "value"], [[f"`{name}`", value] for name, value in values.items()]),
    )


def page(card: str, folder: Path) -> str:
    """The card as one web page that needs no other file: pictures, named relative to ``folder``, are inside."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(card)
    images = [child for token in tokens for child in token.children or [] if child.type == "image"]
    for image in images:
        content = base64.b64encode((folder / str(image.attrs["src"])).read_bytes()).decode()
        image.attrs["src"] = f"data:image/png;base64,{content}"
    body = markdown.renderer.render(tokens, markdown.options, {})
    title = html.escape(card.partition("\n")[0].removeprefix("# "))
    return _PAGE.format(title=title, style=_STYLE, body=body)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""

_STYLE = """
body { max-width: 54rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
body { color: #1b1b1b; background: #fff; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
h1 + p + p { border-left: 4px solid #d55e00; padding: .5rem 1rem; background: #d55e0014; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; overflow-wrap: normal; }
th, td { border-bottom: 1px solid #8886; padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; } td code { overflow-wrap: anywhere; }
img { max-width: 100%; background: #fff; border-radius: .4rem; }
code { font-size: .9em; }
@media (prefers-color-scheme: dark) { body { color: #e6e6e6; background: #16181c; } a { color: #8ab8ff; } }
@media print { body { max-width: none; margin: 0; color: #000; background: #fff; font-size: 10pt; }
  h2 { break-after: avoid; } table { display: table; } img { max-height: 22cm; } img, tr, li { break-inside: avoid; } }
"""


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _picture(path: Path, caption: str) -> str:
    return f"![{caption}](../{path.as_posix()})"


def _loss(figures: Mapping[str, float]) -> str:
    return f"{figures['loss']:.3f} [{figures['loss_low']:.3f}, {figures['loss_high']:.3f}]"
