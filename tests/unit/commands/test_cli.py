import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lenet5.commands import cli

# In the order in which a person meets them.
WORDS = [
    "recipe",
    "predict",
    "serve",
    "compare",
    "champion",
    "seeds",
    "sweep",
    "cluster",
    "reproduce",
    "record",
    "doctor",
]


@pytest.fixture(autouse=True)
def _usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def status(*words: str) -> object:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return end.value.code


def test_help_lists_the_words_in_order_with_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    lines = re.findall(r"^    (\w+) +\S.*$", capsys.readouterr().out, re.MULTILINE)
    assert lines == WORDS


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    lines = "print('a line ' * 20)\n" * 2000
    code = f"from lenet5.commands import cli\ncli._doctor = lambda _: exec({lines!r}) or 0\ncli.main(['doctor'])"
    for enough in ("true", "head -1"):
        command = f"{shlex.join([sys.executable, '-c', code])} | {enough}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("closed", "said"), [(">&-", ("", "a word\n")), ("2>&-", ("fine\n", ""))])
def test_a_stream_that_a_shell_has_closed_ends_no_command(closed: str, said: tuple[str, str], tmp_path: Path) -> None:
    lines = "import sys; print('fine'); print('a word', file=sys.stderr)"
    code = f"from lenet5.commands import cli\ncli._doctor = lambda _: exec({lines!r}) or 0\ncli.main(['doctor'])"
    command = f"{shlex.join([sys.executable, '-c', code])} {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, *said)


def test_a_letter_that_the_terminal_does_not_know_ends_no_command(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_doctor", lambda _: print("猫, größer, \udce9") or 0)
    with open(1, "w", encoding="ascii", errors="strict", closefd=False) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert status("doctor") == 0
    assert capfdbinary.readouterr().out == b"\\u732b, gr\\xf6\\xdfer, \\udce9\n"


@pytest.mark.parametrize(
    "words",
    [["compare", "workspace", "workspace", "--html", "params.yaml"], ["record", "pack", "champion", "params.yaml"]],
    ids=lambda words: words[0],
)
def test_a_file_of_another_kind_is_not_written_over(
    words: list[str], workspace: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (repository / "params.yaml").read_bytes()
    (workspace / "params.yaml").write_bytes(text)
    assert status(*words) == 1
    assert "give a file that ends in ." in capsys.readouterr().err
    assert (workspace / "params.yaml").read_bytes() == text


@pytest.mark.parametrize(
    "words", [["recipe", "params.yaml/x"], ["recipe", "x" * 300], ["sweep", "run", "params.yaml/x"],
              ["record", "take", "params.yaml/x"], ["predict", "x.png", "--maps", "x" * 300 + ".png"]],
    ids=lambda words: " ".join(words)[:30],
)  # fmt: skip
def test_a_place_where_no_file_can_be_is_one_line(
    words: list[str], workspace: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    assert status(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("name another place|not a file that `lenet5 record pack` wrote|no such", line), line


OF_TWO = [
    "sweep run",
    "sweep show",
    "sweep confirm",
    "sweep recipe",
    "cluster head",
    "cluster join",
    "cluster stop",
    "record verify",
    "record pack",
    "record take",
]


@pytest.mark.parametrize("word", [*(word for word in WORDS if word not in ("sweep", "cluster", "record")), *OF_TWO])
def test_every_word_has_an_example_that_can_be_typed(
    word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, f"_{word.replace(' ', '_')}", lambda _: 7)
    assert status(*word.split(), "--help") == 0
    _, _, example = " ".join(capsys.readouterr().out.split()).partition("Example: ")
    program, *words = shlex.split(example)
    assert f"{program} {' '.join(words)} ".startswith(f"lenet5 {word} ")
    assert status(*words) == 7  # it was understood, and done


@pytest.mark.parametrize(
    ("words", "fault", "advice"),
    [
        ("", "required: COMMAND", "lenet5 --help"),
        ("predikt boot.png", "'predikt'", "lenet5 --help"),
        ("predict", "required: IMAGE", "lenet5 predict --help"),
        ("serve --port many", "'many'", "lenet5 serve --help"),
        ("compare champion --page", "--page", "lenet5 --help"),
        ("champion 2 --back", "two changes", "lenet5 champion --help"),
        ("champion --reason because", "of a change", "lenet5 champion --help"),
        ("doctor --quickly", "--quickly", "lenet5 --help"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_it_and_the_help(
    words: str, fault: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*words.split()) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == ""
    assert fault in line
    assert f"`{advice}`" in line
