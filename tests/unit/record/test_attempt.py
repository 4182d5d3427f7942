import re
import shutil
from contextlib import suppress
from pathlib import Path

from lenet5.attempt import attempt_at, begin, forget

KEY, OTHER_KEY, RESULT = "a" * 64, "b" * 64, "c" * 64


def killed(folder: Path, key: str, result: str | None = None) -> str:
    """The name of an attempt that did not come to its end, but, with ``result``, to its outs."""
    with suppress(KeyboardInterrupt), begin(folder, key) as attempt:
        if result:
            attempt.finished(result)
        raise KeyboardInterrupt
    return attempt.name


def test_a_training_taken_up_again_keeps_its_name(tmp_path: Path) -> None:
    name = killed(tmp_path, KEY)
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert killed(tmp_path, KEY) == name
    assert killed(tmp_path, OTHER_KEY) != name
    with begin(tmp_path, KEY) as attempt:
        assert attempt.name == name


def test_one_that_ended_well_does_not(tmp_path: Path) -> None:
    with begin(tmp_path, KEY) as attempt:
        pass
    assert killed(tmp_path, KEY) != attempt.name


def test_one_killed_after_its_outs_were_written_does(tmp_path: Path) -> None:
    assert killed(tmp_path, KEY) == killed(tmp_path, KEY, RESULT) == killed(tmp_path, KEY)


def test_two_of_the_same_at_once_have_two_names(tmp_path: Path) -> None:
    with begin(tmp_path, KEY) as first:
        with begin(tmp_path, KEY) as second:
            assert first.name != second.name
        assert killed(tmp_path, KEY) not in (first.name, second.name)
    with begin(tmp_path, OTHER_KEY) as other:
        assert other.name not in (first.name, second.name)


def test_register_is_told_the_name_until_it_has_recorded_the_result(tmp_path: Path) -> None:
    with begin(tmp_path, KEY) as attempt:
        attempt.finished(RESULT)
    assert attempt_at(tmp_path, RESULT) == attempt.name
    assert attempt_at(tmp_path, KEY) is None
    forget(tmp_path, RESULT)
    assert attempt_at(tmp_path, RESULT) is None
    forget(tmp_path, RESULT)


def test_a_damaged_name_is_not_used(tmp_path: Path) -> None:
    name = killed(tmp_path, KEY)
    (unfinished,) = tmp_path.glob("*.unfinished")
    unfinished.write_bytes(b"\xff' OR ''='")
    again = killed(tmp_path, KEY)
    assert again != name
    assert re.fullmatch("[0-9a-f]{32}", again)


def test_a_folder_cleaned_away_meanwhile_does_not_fail_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "attempts"
    with begin(folder, KEY) as attempt:
        shutil.rmtree(folder)
        attempt.finished(RESULT)
    assert attempt_at(folder, RESULT) == attempt.name
