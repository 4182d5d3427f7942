import io
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from lenet5.commands.compare import Comparison, compare_results, judge, show, to_html
from lenet5.errors import UserError
from lenet5.record.promotion import mcnemar
from lenet5.record.result import Measured

HISTORY = pd.DataFrame({"epoch": [1, 2], "test_loss": [0.5, 0.4], "test_accuracy": [0.8, 0.9]}).assign(
    validation_loss=None, validation_accuracy=None
)


def measured(right: str, name: str = "a run", **changes: Any) -> Measured:
    """A result that is right on the images at which ``right`` has a 1."""
    predicted = ["Bag" if letter == "1" else "Coat" for letter in right]
    share = right.count("1") / len(right)
    evaluation = {
        "train": {"loss": 0.1, "accuracy": 0.9},
        "test": {"loss": 0.2, "accuracy": share, "accuracy_low": share - 0.1, "accuracy_high": share + 0.1},
        "gap": {"loss": 0.1, "accuracy": 0.9 - share},
        "onset_of_overfitting": None,
        "calibration_error": 0.02,
        "classes": {"Bag": {"precision": 1.0, "recall": share, "f1": share}},
    }
    fields: dict[str, Any] = {
        "name": name,
        "params": {"train.lr": "0.9", "model.pooling": "avg"},
        "evaluation": evaluation,
        "predictions": pd.DataFrame({"true": "Bag", "predicted": predicted}),
        "data_digest": "the same",
        "history": HISTORY,
    }
    return Measured(**(fields | changes))


def compared(first: Measured, second: Measured) -> Comparison:
    return compare_results(first, second, 0.05)


def printed(comparison: Comparison) -> str:
    stream = io.StringIO()
    show(comparison, Console(file=stream, width=80))
    return stream.getvalue()


def test_mcnemar_counts_the_images_that_only_one_gets_right() -> None:
    verdict = judge(measured("1100011111"), measured("1011111111"), 0.05)
    assert verdict.startswith(
        "The difference may well be luck: of 10 test images 1 are right only with A, 3 only with B"
    )
    assert mcnemar(1, 3) == pytest.approx(0.625)  # 2 (1 + 4) / 2**4
    assert "p = 0.62," in verdict


@pytest.mark.parametrize(
    ("first", "second", "conclusion"),
    [
        ("0" * 10, "1" * 10, "B is better, by more than luck"),
        ("1" * 10, "0" * 10, "A is better, by more than luck"),
        ("10" * 5, "01" * 5, "Neither is better"),
        ("10" * 5, "10" * 5, "Neither is better"),
    ],
)
def test_the_verdict_names_the_better_one(first: str, second: str, conclusion: str) -> None:
    assert judge(measured(first), measured(second), 0.05).startswith(f"{conclusion}: ")


def test_alpha_decides_what_more_than_luck_is() -> None:
    first, second = measured("000000"), measured("111111")  # p = 1 / 32
    assert "more than luck" in judge(first, second, 0.04)
    assert "may well be luck" in judge(first, second, 0.03)


def test_only_params_that_differ_are_shown_and_those_of_one_side_only() -> None:
    second = measured("10", params={"train.lr": "0.5", "model.pooling": "avg", "train.new": "1"})
    assert compared(measured("10"), second).params == [["train.lr", "0.9", "0.5"], ["train.new", "-", "1"]]


def test_figures_carry_their_interval_difference_and_which_is_better() -> None:
    comparison = compared(measured("1000"), measured("1100"))
    rows = {row.name: row for rows in comparison.figures.values() for row in rows}
    accuracy = rows["test accuracy"]
    assert (accuracy.first, accuracy.second) == ("25.00 [15.00, 35.00]", "50.00 [40.00, 60.00]")
    assert (accuracy.difference, accuracy.better) == ("+25.00", 1)
    assert (rows["accuracy gap, points"].difference, rows["accuracy gap, points"].better) == ("-25.00", 1)
    assert (rows["test loss"].difference, rows["test loss"].better) == ("same", 0)
    assert rows["train accuracy"].better == 0  # it says nothing of images the model has not seen
    assert rows["Bag"].second == "0.500"
    names = ("test accuracy", "Bag", "accuracy gap, points")
    worse = compared(measured("1100"), measured("1000")).figures
    assert {row.better for rows in worse.values() for row in rows if row.name in names} == {-1}


def test_where_one_side_held_no_images_out_both_gaps_are_to_the_test_images_and_it_is_said() -> None:
    split = {"validation": {"loss": 0.3, "accuracy": 0.5}, "gap_test": {"loss": 0.4, "accuracy": 0.3}}
    divided = measured("10")
    divided = measured("10", evaluation={**divided.evaluation, **split})
    comparison = compared(divided, measured("10"))
    gap = next(row for rows in comparison.figures.values() for row in rows if row.name == "accuracy gap, points")
    assert (gap.first, gap.second) == ("30.00", "40.00")
    for text in (printed(comparison), to_html(comparison)):
        assert "B held no images out for validation: no onset of overfitting" in text
    assert "A and B held no images out" in printed(compared(measured("10"), measured("10")))
    both = compared(divided, divided)
    assert "held no images out" not in printed(both)
    gap = next(row for rows in both.figures.values() for row in rows if row.name == "accuracy gap, points")
    assert gap.first == "40.00"


def test_a_figure_that_one_side_does_not_have_is_a_dash() -> None:
    with_validation = measured("10")
    with_validation.evaluation["validation"] = {"loss": 0.3, "accuracy": 0.5}  # type: ignore[index]
    rows = {row.name: row for row in compared(measured("10"), with_validation).figures.popitem()[1]}
    assert rows["Coat"].first == "-"
    figures = next(iter(compared(measured("10"), with_validation).figures.values()))
    validation = next(row for row in figures if row.name == "validation accuracy")
    assert (validation.first, validation.second, validation.difference) == ("-", "50.00", "")


@pytest.mark.parametrize(
    "other",
    [
        measured("10", data_digest="another"),
        measured("101"),
        measured("10", predictions=pd.DataFrame({"true": ["Bag", "Coat"], "predicted": ["Bag", "Bag"]})),
    ],
)
def test_results_on_other_test_images_are_not_compared(other: Measured) -> None:
    with pytest.raises(UserError, match="measured on different test images"):
        compared(measured("10"), other)


def test_the_terminal_gets_lines_that_fit() -> None:
    text = printed(compared(measured("10", "the first"), measured("01", "the second")))
    assert "A  the first\n" in text
    assert "B  the second\n" in text
    assert "validation accuracy " in text
    assert "none" in text


class Page(HTMLParser):
    """What a page loads, and whether every element that needs it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_loads_nothing_and_shows_names_as_they_are() -> None:
    comparison = compared(measured("10", "<b>one</b>"), measured("01", "__VERDICT__", params={"train.lr": "<1>"}))
    page = Page()
    page.feed(to_html(comparison))
    assert page.open == []
    assert all(load.startswith("data:") for load in page.loads)
    for part in ("<b>one</b>", "__VERDICT__", "<1>", "model.pooling", "test accuracy", comparison.verdict):
        assert part in page.text
