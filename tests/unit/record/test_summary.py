from typing import Any

import pytest

from lenet5.record.summary import not_in_git, summary

TRAINING = {"epochs": 100, "chosen_epoch": 80}
EVALUATION: dict[str, Any] = {
    "validation": {},
    "test": {"accuracy": 0.9024, "accuracy_low": 0.8964, "accuracy_high": 0.9081},
    "gap": {"accuracy": 0.0278},
}


@pytest.mark.parametrize(
    ("alias", "became", "said"),
    [
        ("champion", "champion", "champion when last registered"),
        ("best, champion", "challenger", "champion when last registered"),
        (None, "champion", "not champion (champion when registered)"),
        ("challenger", "challenger", "not champion (challenger when registered)"),
        (None, "rejected", "not champion (rejected when registered)"),
    ],
)
def test_one_line_says_what_was_kept_how_good_it_is_and_where_to_look(
    alias: str | None, became: str, said: str
) -> None:
    assert summary(TRAINING, EVALUATION, {"alias": alias, "became": became}, "http://127.0.0.1:5000/#/run") == (
        "kept: epoch 80 of 100; test accuracy 90.24% [89.64, 90.81], accuracy gap 2.8 points; "
        f"{said}; http://127.0.0.1:5000/#/run"
    )


def test_without_validation_images_the_gap_says_to_what_it_is() -> None:
    bare = {name: value for name, value in EVALUATION.items() if name != "validation"}
    assert "accuracy gap to test 2.8" in summary(TRAINING, bare, {"alias": None, "became": "rejected"}, "")


def test_results_that_git_has_otherwise_are_named_with_what_keeps_them() -> None:
    changed = ["dvc.lock", "metrics/headline.json", "params.yaml", "src/lenet5/network/lenet5.py"]
    assert not_in_git(changed) == [
        f"changed since the last commit: {', '.join(changed)}",
        "keep results with what made them: git switch --create NAME && git commit --all; docs/workspace.md says more",
    ]


def test_many_changed_files_stay_one_line_results_first() -> None:
    listed = not_in_git([*(f"a{number}.py" for number in range(9)), "dvc.lock"])[0]
    assert listed == "changed since the last commit: dvc.lock, a0.py, a1.py, a2.py, a3.py, a4.py and 4 more"


@pytest.mark.parametrize("changed", [[], ["params.yaml", "README.md", "metrics.py"]])
def test_nothing_is_said_where_git_has_the_results(changed: list[str]) -> None:
    assert not_in_git(changed) == []
