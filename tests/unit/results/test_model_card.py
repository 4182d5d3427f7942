from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from lenet5.data.fashion_mnist import CLASSES
from lenet5.network.lenet5 import LeNet5, layers
from lenet5.params import Params
from lenet5.results.model_card import completed, model_card, page, summary
from tests.params import changed

FIGURES = {
    "loss": 0.25,
    "loss_low": 0.2,
    "loss_high": 0.3,
    "accuracy": 0.9,
    "accuracy_low": 0.885,
    "accuracy_high": 0.912,
}
TRAINING = {"chosen_epoch": 2, "epochs": 3, "weights_sha256": "0123abcd" * 8}
PREDICTIONS = pd.DataFrame(
    {"true": ["Bag", "Bag", "Coat"], "predicted": ["Bag", "Coat", "Coat"], "probability": [0.9, 0.8, 0.7]}
)


def evaluation(*splits: str) -> dict[str, Any]:
    scores = {name: {"precision": 0.9, "recall": 0.8, "f1": 0.85} for name in CLASSES}
    return {
        **dict.fromkeys(splits, FIGURES),
        "gap": {"loss": 0.06, "accuracy": 0.028},
        "gap_test": {"loss": 0.09, "accuracy": 0.03},
        "onset_of_overfitting": 2 if "validation" in splits else None,
        "calibration_error": 0.017,
        "classes": scores | {"Shirt": {"precision": 0.7, "recall": 0.6, "f1": 0.65}},
    }


def history(*gaps: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "epoch": range(1, len(gaps) + 1),
            "train_accuracy": 0.9,
            "gap_accuracy": gaps,
            "gap_loss": 0.0,
            "test_loss": 0.5,
        }
    )


def card_of(params: Params) -> str:
    measured = evaluation("train", "validation", "test")
    return model_card(params, history(0.0, 0.01, 0.03), TRAINING, measured, layers(LeNet5(params.model)), PREDICTIONS)


def test_the_summary_gives_every_split_with_its_interval(content: dict[str, Any]) -> None:
    params = changed(content, data__validation_size=5000)
    text = summary(params, history(0.0, 0.01, 0.03), TRAINING, evaluation("train", "validation", "test"))
    assert "| validation | 5,000 | 0.250 [0.200, 0.300] | 90.00% [88.50, 91.20] |" in text
    assert "| test | 10,000 |" in text
    assert "95 % intervals" in text
    assert "training and validation images: 0.060 nats, 2.8 points" in text
    assert len(text) < 2000  # beside the decision it fits where MLflow keeps 5,000 characters


def test_the_summary_does_without_validation_images(content: dict[str, Any]) -> None:
    params = changed(content, data__validation_size=0)
    text = summary(params, history(0.0, 0.01, 0.03), TRAINING, evaluation("train", "test"))
    assert "| validation" not in text
    assert "training and test images: 0.060 nats" in text


def test_the_card_says_what_made_the_model_and_where_it_fails(params: Params) -> None:
    card = card_of(params)
    assert "61,706 parameters" in card
    assert TRAINING["weights_sha256"] in card
    assert "Hardest class: Shirt, F1 65.0%. Most frequent mistakes: Bag taken for Coat (1)" in card
    assert "| `train.optimizer` | sgd |" in card
    assert card_of(params) == card


def test_a_completed_card_holds_the_card_and_the_facts(params: Params) -> None:
    card = card_of(params)
    whole = completed(card, {"decision": "champion: p = 0.01 | alpha"})
    assert whole.startswith(card)
    assert "| decision | champion: p = 0.01 \\| alpha |" in whole


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == "img" or self.open.pop() == tag

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_page_needs_nothing_but_itself(params: Params, tmp_path: Path) -> None:
    for folder in ("plots", "reports"):
        (tmp_path / folder).mkdir()
    card = completed(card_of(params), {"run": "<script>alert(1)</script>"})
    names = [line.partition("(../")[2][:-1] for line in card.splitlines() if line.startswith("![")]
    for name in names:
        Image.new("L", (10, 10)).save(tmp_path / name)
    text = page(card, tmp_path / "reports")
    parsed = Page(text)
    assert parsed.open == []
    images = parsed.found("img")
    assert len(images) == len(names) == 7
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert "url(" not in text
    assert "@import" not in text
    assert len(parsed.found("table")) == 5
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.found("meta")
    assert page(card, tmp_path / "reports") == text
