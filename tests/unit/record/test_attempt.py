import re
import shutil
from contextlib import suppress
from pathlib import Path

from lenet5.record.attempt import CutShort, attempts_at, begin, cut_short, forget, names_of_attempts

KEY, OTHER_KEY, RESULT = "a" * 64, "b" * 64, "c" * 64


def killed(folder: Path, key: str, result: str | None = None) -> str:
    """The name of an attempt that did not come to its end, but, with ``result``, to its outs."""
    with suppress(KeyboardInterrupt), begin(folder, key, "a recipe") as attempt:
        if result:
            attempt.finished(result)
        raise KeyboardInterrupt
    return attempt.name


def test_a_training_taken_up_again_keeps_its_name(tmp_path: Path) -> None:
    name = killed(tmp_path, KEY)
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert killed(tmp_path, KEY) == name
    assert killed(tmp_path, OTHER_KEY) != name
    with begin(tmp_path, KEY, "a recipe") as attempt:
        assert attempt.name == name


def test_one_that_ended_well_does_not(tmp_path: Path) -> None:
    with begin(tmp_path, KEY, "a recipe") as attempt:
        pass
    assert killed(tmp_path, KEY) != attempt.name


def test_one_killed_after_its_outs_were_written_does(tmp_path: Path) -> None:
    assert killed(tmp_path, KEY) == killed(tmp_path, KEY, RESULT) == killed(tmp_path, KEY)


def test_two_of_the_same_at_once_have_two_names(tmp_path: Path) -> None:
    with begin(tmp_path, KEY, "a recipe") as first:
        with begin(tmp_path, KEY, "a recipe") as second:
            assert first.name != second.name
        assert killed(tmp_path, KEY) not in (first.name, second.name)
    with begin(tmp_path, OTHER_KEY, "a recipe") as other:
        assert other.name not in (first.name, second.name)


def test_of_two_of_the_same_at_once_neither_is_lost(tmp_path: Path) -> None:
    with begin(tmp_path, KEY, "a recipe") as first:
        second = killed(tmp_path, KEY)
        assert names_of_attempts(tmp_path) == {first.name, second}
        assert cut_short(tmp_path) == [CutShort(second, KEY[:32], "a recipe")]
    with begin(tmp_path, KEY, "a recipe") as again:
        assert again.name == second
        for attempt in (first, again):
            attempt.finished(RESULT)
    assert attempts_at(tmp_path, RESULT) == names_of_attempts(tmp_path) == {first.name, second}
    forget(tmp_path, RESULT)
    assert names_of_attempts(tmp_path) == set()


def test_register_is_told_the_name_until_it_has_recorded_the_result(tmp_path: Path) -> None:
    with begin(tmp_path, KEY, "a recipe") as attempt:
        attempt.finished(RESULT)
    assert attempts_at(tmp_path, RESULT) == {attempt.name}
    assert attempts_at(tmp_path, KEY) == set()
    forget(tmp_path, RESULT)
    assert attempts_at(tmp_path, RESULT) == set()
    forget(tmp_path, RESULT)


def test_those_cut_short_are_told_but_not_one_that_a_process_is_at_or_that_ended(tmp_path: Path) -> None:
    assert cut_short(tmp_path / "none yet") == []
    name = killed(tmp_path, KEY)
    with begin(tmp_path, OTHER_KEY, "another") as other:
        assert cut_short(tmp_path) == [CutShort(name, KEY[:32], "a recipe")]
    assert killed(tmp_path, KEY) == name
    (tmp_path / f"{OTHER_KEY[:32]}.unfinished").write_text(other.name)  # as it was written before
    assert [one.about for one in cut_short(tmp_path)] == ["a recipe", ""]


def test_a_damaged_name_is_not_used(tmp_path: Path) -> None:
    name = killed(tmp_path, KEY)
    (unfinished,) = tmp_path.glob("*.unfinished")
    unfinished.write_bytes(b"\xff' OR ''='")
    again = killed(tmp_path, KEY)
    assert again != name
    assert re.fullmatch("[0-9a-f]{32}", again)


def test_a_folder_cleaned_away_meanwhile_does_not_fail_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "attempts"
    with begin(folder, KEY, "a recipe") as attempt:
        shutil.rmtree(folder)
        attempt.finished(RESULT)
    assert attempts_at(folder, RESULT) == {attempt.name}
