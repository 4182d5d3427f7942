from collections.abc import Callable
from pathlib import Path

import pytest

from lenet5.errors import UserError
from lenet5.search.plan import Plan
from lenet5.search.study import Study, open_study, read_study

from .conftest import row

Search = Callable[..., Study]


def finish(study: Study, loss: float, epochs: int = 8) -> list[int]:
    """Train a trial that has this loss in every epoch; the epochs after which it would be ended."""
    number = study.ask()
    asked = [epoch for epoch in range(1, epochs + 1) if study.add_row(number, row(epoch, loss), epochs)]
    study.end(number, "complete", "", epochs, loss)
    return asked


def test_a_search_goes_on_where_its_journal_ends(search: Search) -> None:
    study = search()
    finish(study, 0.5)
    number = study.ask()
    tried = study.tried(number)
    study.add_row(number, row(1, 0.7), 8)
    again = search()
    assert again.key == study.key
    assert again.unfinished() == [number]
    assert again.tried(number) == tried
    first, second = again.trials()
    assert (first.kind, first.value, len(first.rows)) == ("complete", 0.5, 8)
    assert (second.kind, second.value, second.ended, len(second.rows)) == ("running", None, None, 1)


def test_a_trial_that_begins_anew_keeps_the_rows_it_had(search: Search) -> None:
    study = search()
    number = study.ask()
    study.add_row(number, row(1, 0.7), 8)
    (before,) = study.trials()[number].rows
    again = search()
    again.add_row(number, row(1, 0.7), 8)
    again.add_row(number, row(2, 0.6), 8)
    assert again.trials()[number].rows[0] == before
    assert [one["epoch"] for one in again.trials()[number].rows] == [1, 2]


def test_a_trial_that_begins_anew_on_another_kind_of_machine_has_the_rows_its_value_comes_from(search: Search) -> None:
    study = search()
    number = study.ask()
    study.add_row(number, row(1, 0.7), 8)
    study.add_row(number, row(1, 0.7001), 8)
    assert [one["validation_loss"] for one in study.trials()[number].rows] == [0.7001]


def test_a_trial_that_began_anew_and_ended_earlier_has_no_rows_of_the_attempt_that_was_lost(search: Search) -> None:
    study = search()
    number = study.ask()
    for epoch in range(1, 8):
        study.add_row(number, row(epoch, 0.2), 8)
    for epoch in range(1, 6):
        study.add_row(number, row(epoch, 0.4), 8)
    study.end(number, "complete", "", 5, 0.4)
    (trial,) = search().trials()
    assert [(one["epoch"], one["validation_loss"]) for one in trial.rows] == [(epoch, 0.4) for epoch in range(1, 6)]


def test_only_a_trial_that_is_worse_is_ended_and_at_the_rungs(search: Search) -> None:
    study = search()
    assert finish(study, 0.2) == []
    assert finish(study, 0.1) == []
    asked = finish(study, 0.9)
    assert asked[0] == 2  # a quarter of its epochs


def test_the_search_goes_where_trials_were_good(search: Search) -> None:
    study = search(space={"train.lr": {"low": 0.0, "high": 1.0}, "model.dropout": {"low": 0.0, "high": 0.9}})
    for _ in range(40):
        number = study.ask()
        tried = study.tried(number)
        study.end(number, "complete", "", 1, (tried["train.lr"] - 0.3) ** 2 + (tried["model.dropout"] - 0.3) ** 2)
    late = [trial.value for trial in study.trials()[20:] if trial.value is not None]
    assert sorted(late)[len(late) // 2] < 0.03  # at random half of them would be above 0.1
    assert study.unfinished() == []


def test_accuracy_is_better_when_it_is_higher(search: Search) -> None:
    study = search(objective="validation_accuracy")
    numbers = [study.ask() for _ in range(3)]
    asked = [
        [study.add_row(number, row(2, 0.5, accuracy), 8)]
        for number, accuracy in zip(numbers, (0.8, 0.9, 0.3), strict=True)
    ]
    assert asked == [[False], [False], [True]]


def test_the_objective_is_free_until_the_search_has_begun(
    search: Search, journal: Path, plan: Callable[..., Plan]
) -> None:
    open_study(journal, "wide", plan(objective="validation_loss"))  # and its process ends over what comes before begin
    study = search(objective="validation_accuracy")
    asked = [study.add_row(study.ask(), row(2, 0.5, accuracy), 8) for accuracy in (0.8, 0.9, 0.3)]
    assert asked == [False, False, True]


def test_nothing_is_ended_where_pruning_is_off(search: Search) -> None:
    study = search(prune=False)
    assert [finish(study, loss) for loss in (0.1, 0.2, 0.9)] == [[], [], []]


def test_what_is_tried_lies_in_the_space_and_differs(search: Search) -> None:
    study = search()
    tried = [study.tried(study.ask()) for _ in range(5)]
    assert all(0.001 <= one["train.lr"] <= 0.1 and one["model.activation"] in ("relu", "tanh") for one in tried)
    more = [again.tried(again.ask()) for again in [search()] for _ in range(5)]
    assert len({one["train.lr"] for one in tried + more}) == 10  # one that goes on does not repeat itself


def test_every_end_is_kept(search: Search) -> None:
    study = search()
    for kind in ("pruned", "stuck", "diverged", "lost"):
        study.end(study.ask(), kind, f"why {kind}", 1)
    assert [(one.kind, one.note, one.value) for one in search().trials()] == [
        (kind, f"why {kind}", None) for kind in ("pruned", "stuck", "diverged", "lost")
    ]


def test_losses_are_counted_across_processes(search: Search) -> None:
    study = search()
    number = study.ask()
    assert study.lose(number, "killed") == 1
    assert search().lose(number, "killed") == 2


def test_where_it_began_is_kept_and_the_number_of_trials_may_grow(
    search: Search, journal: Path, plan: Callable[..., Plan]
) -> None:
    search()
    assert search(trials=9).begin({"code": "1"}) == {"code": "1"}
    _, kept = read_study(journal, "wide")
    assert kept == plan(trials=9)


def test_a_plan_of_another_origin_changes_nothing(search: Search, journal: Path, plan: Callable[..., Plan]) -> None:
    finish(search(), 0.5)
    another = open_study(journal, "wide", plan(space={"model.dropout": {"low": 0.0, "high": 0.5}}))
    assert another.begin({"code": "2"}) == {"code": "1"}
    study, kept = read_study(journal, "wide")
    assert kept == plan()
    assert study.trials()[0].value == 0.5


def test_a_journal_in_which_nothing_has_begun_is_told(journal: Path, plan: Callable[..., Plan]) -> None:
    open_study(journal, "wide", plan())
    for name in ("wide", "copied"):
        with pytest.raises(UserError, match=f"sweep {name} has not begun in it; `lenet5 sweep run FILE` begins it"):
            read_study(journal, name)


def test_a_line_that_was_never_written_whole_is_taken_off(search: Search, journal: Path) -> None:
    study = search()
    finish(study, 0.5)
    whole = journal.read_bytes()
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 5, "worker')
    read_study(journal, "wide")
    assert journal.read_bytes() != whole  # who only looks leaves it: it may be being written
    assert search().trials()[0].value == 0.5
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize("damage", [b"\x00\x00\x00", b"[1]", b'{"op": 1}', b""])
def test_a_damaged_line_is_told_and_the_file_left_as_it_is(search: Search, journal: Path, damage: bytes) -> None:
    finish(search(), 0.5)
    lines = journal.read_bytes().split(b"\n")
    lines[3] = damage
    journal.write_bytes(b"\n".join(lines))
    before = journal.read_bytes()
    for opening in (search, lambda: read_study(journal, "wide")):
        with pytest.raises(UserError, match="line 4 is damaged; bring the file back from a copy, or move it away"):
            opening()
    assert journal.read_bytes() == before


def test_entries_that_are_not_whole_are_told_and_the_file_left_as_it_is(search: Search, journal: Path) -> None:
    finish(search(), 0.5)
    whole = journal.read_bytes()
    origin = next(line for line in whole.splitlines(keepends=True) if b'"origin"' in line)
    for damaged in (whole + b'{"op_code":5}\n', whole.replace(origin, b"")):
        journal.write_bytes(damaged)
        for look in (search, lambda: read_study(journal, "wide")):
            with pytest.raises(UserError, match="bring the file back from a copy, or move it away"):
                look()
        assert journal.read_bytes() == damaged


def test_more_epochs_than_optuna_is_told_of_are_no_warning_and_still_judged(search: Search) -> None:
    study = search()
    judged = [
        [epoch for epoch in (1, 2, 999, 1000, 1001) if study.add_row(number, row(epoch, loss), 4000)]
        for number, loss in ((study.ask(), 0.1), (study.ask(), 0.9))
    ]
    assert judged == [[], [1000]]  # a quarter of its epochs


def test_importance_and_pictures_wait_for_two_that_differ(search: Search, tmp_path: Path) -> None:
    study = search()
    finish(study, 0.5)
    assert study.importances() == {}
    assert study.pictures(tmp_path) == []
    finish(study, 0.4)
    finish(study, 0.3)
    assert set(study.importances()) == {"train.lr", "model.activation"}


def test_the_pictures_are_drawn(search: Search, tmp_path: Path) -> None:
    study = search()
    for loss in (0.5, 0.4, 0.3):
        finish(study, loss)
    drawn = study.pictures(tmp_path)
    assert [path.name for path in drawn] == ["history.png", "importance.png", "parallel.png", "slices.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
