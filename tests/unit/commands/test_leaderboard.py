import io
import re

import pytest
from rich.console import Console

from lenet5.commands.leaderboard import Leaderboard, board_page, rank, show_board
from lenet5.errors import UserError

from .test_compare import Page, measured


@pytest.fixture
def board() -> Leaderboard:
    """A is right on 60 of 100 images, B on the same and 6 more, C on 8 others in place of 20, D just as A."""
    results = [
        measured("1" * 60 + "0" * 40, "the first"),
        measured("1" * 66 + "0" * 34, "better", params={"train.lr": "0.1", "model.pooling": "avg"}),
        measured("0" * 20 + "1" * 48 + "0" * 32, "worse"),
        measured("1" * 60 + "0" * 40, "<b>the same</b>"),
    ]
    return rank(results, 0.1)


def printed(board: Leaderboard) -> str:
    stream = io.StringIO()
    show_board(board, Console(file=stream, width=80))
    return stream.getvalue()


def test_the_best_comes_first_and_each_is_tested_against_the_first_named(board: Leaderboard) -> None:
    assert [one.letter for one in board.standings] == ["B", "A", "D", "C"]
    by_letter = {one.letter: one for one in board.standings}
    assert by_letter["A"].against == ""
    # Exact tests give 2 / 2**6 = 0.031, 0.036 and 1: three tests, so the least is tripled, the next doubled.
    assert by_letter["B"].against == "+6 -0, p = 0.094"
    assert by_letter["C"].against == "+8 -20, p = 0.094"  # 2 x 0.036 is less than that of B: never below it
    assert by_letter["D"].against == "+0 -0, p = 1"
    assert [by_letter[letter].better for letter in "ABCD"] == [0, 1, -1, 0]
    assert by_letter["B"].figures[0] == "66.00 [56.00, 76.00]"


def test_where_one_held_no_images_out_all_gaps_are_to_the_test_images_and_it_is_said() -> None:
    split = {"validation": {"loss": 0.3, "accuracy": 0.5}, "gap_test": {"loss": 0.4, "accuracy": 0.3}}
    divided = measured("10", evaluation={**measured("10").evaluation, **split})
    board = rank([divided, divided, measured("10")], 0.1)
    assert [one.figures[2] for one in board.standings] == ["30.00", "30.00", "40.00"]
    for text in (printed(board), board_page(board)):
        assert "C held no images out for validation" in text
        assert "all gaps are those from training to test images" in " ".join(text.split())
    assert "held no images out" not in printed(rank([divided] * 3, 0.1))


def test_no_name_or_value_is_cut_where_many_stand_side_by_side() -> None:
    changed = {"train.augmentation.horizontal_flip": "True", "train.weights": "best_validation"}
    results = [measured("1" * 100, str(number), params=changed if number % 2 else {}) for number in range(6)]
    text = printed(rank(results, 0.1))
    assert "\u2026" not in text
    assert max(map(len, text.partition("Accuracies in %")[0].splitlines())) <= 80
    names = "".join(re.findall("^  (\\S+)", text.partition("Params that differ")[2], re.MULTILINE))
    assert "train.augmentation.horizontal_flip" in names


def test_a_terminal_of_eighty_columns_shows_the_whole_leaderboard(board: Leaderboard) -> None:
    text = printed(board)
    assert max(map(len, text.partition("Params that differ")[0].splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["A", "the", "first"] in rows
    assert ["B", "66.00", "[56.00,", "76.00]", "-", "24.00", "+6", "-0,", "p", "=", "0.094"] in rows
    assert ["train.lr", "0.9", "0.1", "0.9", "0.9"] in rows
    assert "model.pooling" not in text
    assert "corrected by Holm's method for 3 tests" in " ".join(text.split())


def test_the_page_is_whole_with_the_curves_of_all_in_one_picture(board: Leaderboard) -> None:
    page = Page()
    page.feed(board_page(board))
    assert page.open == []
    pictures = [load for load in page.loads if load != "data:,"]
    assert [load.partition(",")[0] for load in pictures] == ["data:image/png;base64"]
    assert "<b>the same</b>" in page.text
    assert "+6 -0, p = 0.094" in page.text


def test_results_on_other_test_images_have_no_place_on_one_board() -> None:
    with pytest.raises(UserError, match="measured on different test images"):
        rank([measured("10"), measured("01"), measured("101")], 0.05)
    with pytest.raises(UserError, match="26 at most"):
        rank([measured("10")] * 27, 0.05)
