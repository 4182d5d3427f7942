import io
import json
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from lenet5.errors import UserError, one_line_errors
from lenet5.params import Params, flat_params, load_params, parse_yaml, set_values

Content = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


@pytest.fixture
def text(content: Content) -> str:
    return str(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def complaint(path: Path) -> Callable[[str | bytes], str]:
    """What is shown to the person who wrote such a file; nothing where it is all right."""

    def load(text: str | bytes) -> str:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return shown(path)

    return load


def shown(path: Path) -> str:
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr), one_line_errors("train"):
            load_params(path)
    except SystemExit:
        (line,) = stderr.getvalue().splitlines()
        prefix = f"train: {path}: "
        assert line.startswith(prefix)
        return line.removeprefix(prefix)
    return ""


def put(content: Content, name: str, value: object) -> str:
    set_values(content, {name: value})
    return str(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def repositorys_params(repository: Path) -> Path:
    """params.yaml as it stands. What is wrong with a person's edit of it is for the stages to say, not for a test."""
    file = repository / "params.yaml"
    try:
        load_params(file)
    except UserError as error:
        if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", file], cwd=repository, check=False).returncode == 1:
            pytest.skip(f"edited, and not valid: {error}")
        raise
    return file


def test_the_repositorys_params_are_valid_and_dvc_reads_the_same_values(repositorys_params: Path) -> None:
    params = load_params(repositorys_params)
    assert params.model_dump(by_alias=True) == YAML(typ="safe").load(repositorys_params)


def test_the_schema_is_up_to_date_and_agrees_with_params_yaml(repository: Path, repositorys_params: Path) -> None:
    schema = json.loads((repository / "params.schema.json").read_text())
    assert schema == json.loads(json.dumps(Params.model_json_schema())), "`make schema` writes it anew"
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    content = YAML(typ="safe").load(repositorys_params)
    validator.validate(content)
    content["train"]["learning_rate"] = 1
    assert not validator.is_valid(content)


def test_every_value_arrives(content: Content, path: Path, text: str) -> None:
    path.write_text(text)
    assert load_params(path).model_dump(by_alias=True) == content


def test_params_are_named_as_on_the_command_line(params: Params) -> None:
    flat = flat_params(params, "data", "model", "train", "register")
    assert flat["train.lr"] == "0.1"
    assert flat["train.augmentation.horizontal_flip"] == "False"
    assert flat["model.activation"] == "relu"
    assert flat["register.alpha"] == "0.05"
    assert {name.split(".")[0] for name in flat} == {"data", "model", "train", "register"}
    assert len(flat) == 3 + 4 + 20 + 6


def test_params_cannot_be_changed_on_the_way(params: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.train.lr = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "read"), [("1e-3", 0.001), ("1.0e-3", 0.001), ("1E-3", 0.001), ("2e+0", 2.0), (".5", 0.5), ("1", 1.0)]
)
def test_numbers_may_be_written_as_people_write_them(path: Path, text: str, written: str, read: float) -> None:
    path.write_text(text.replace("  lr: 0.1\n", f"  lr: {written}\n"))
    assert load_params(path).train.lr == read


@pytest.mark.parametrize(
    ("name", "value", "fragments"),
    [
        ("train.lr", 0, ["train.lr: 0 is not allowed", "greater than 0"]),
        ("train.lr", -0.5, ["train.lr: -0.5 is not allowed", "greater than 0"]),
        ("train.lr", "fast", ["train.lr: 'fast' is not allowed", "number"]),
        ("train.lr", True, ["train.lr: True is not allowed", "number"]),
        ("train.lr", None, ["train.lr: None is not allowed", "number"]),
        ("train.lr", float("nan"), ["train.lr: nan is not allowed", "finite"]),
        ("train.lr", float("inf"), ["train.lr: inf is not allowed", "finite"]),
        ("train.epochs", 0, ["train.epochs: 0 is not allowed", "greater than or equal to 1"]),
        ("train.epochs", True, ["train.epochs: True is not allowed", "integer"]),
        ("train.epochs", 1.5, ["train.epochs: 1.5 is not allowed", "integer"]),
        ("train.epochs", 2.0, ["train.epochs: 2.0 is not allowed", "integer"]),
        ("train.epochs", "10", ["train.epochs: '10' is not allowed", "integer"]),
        ("train.batch_size", 60_001, ["train.batch_size: 60001 is not allowed", "60000"]),
        ("train.momentum", 1, ["train.momentum: 1 is not allowed", "less than 1"]),
        ("train.optimizer", "adam", ["train.optimizer: 'adam' is not allowed", "'sgd' or 'adamw'"]),
        ("train.deterministic", "yes", ["train.deterministic: 'yes' is not allowed", "boolean"]),
        ("train.deterministic", 1, ["train.deterministic: 1 is not allowed", "boolean"]),
        ("train.seed", 2**31, ["train.seed: 2147483648 is not allowed", "less than 2147483648"]),
        ("train.augmentation.shift", 15, ["train.augmentation.shift: 15 is not allowed", "less than or equal to 14"]),
        ("train.augmentation", None, ["train.augmentation: None is not allowed", "keys with values"]),
        (
            "model.activation",
            "gelu",
            ["model.activation: 'gelu' is not allowed", "'sigmoid', 'tanh', 'relu' or 'leaky_relu'"],
        ),
        ("data.validation_size", 60_000, ["data.validation_size: 60000 is not allowed", "less than 60000"]),
        ("kernel_check.seeds", [], ["kernel_check.seeds: [] is not allowed", "at least 1 item"]),
        ("kernel_check.seeds", [0, "a"], ["kernel_check.seeds.1: 'a' is not allowed", "integer"]),
        (
            "kernel_check.tolerance",
            1e-17,
            ["kernel_check.tolerance: 1e-17 is not allowed", "or equal to 0.000000000001"],
        ),
        ("download.sources", ["ftp://x"], ["download.sources.0: 'ftp://x' is not allowed", "https?://"]),
        ("download.sources", ["ftp://me:pass/word@x"], ["download.sources.0: 'ftp://x' is not allowed"]),
        ("download.local_dir", 3, ["download.local_dir: 3 is not allowed", "string"]),
        ("register.model_name", "a/b", ["register.model_name: 'a/b' is not allowed"]),
        ("register.model_name", "a:b", ["register.model_name: 'a:b' is not allowed"]),
        ("register.model_name", " ", ["register.model_name: ' ' is not allowed"]),
        ("register.model_name", "a@b", ["register.model_name: 'a@b' is not allowed"]),
        ("register.model_name", "what?", ["register.model_name: 'what?' is not allowed"]),
        ("register.model_name", "..", ["register.model_name: '..' is not allowed"]),
        ("register.model_name", "two\nlines", ["is not allowed"]),
        ("register.model_name", "x" * 257, ["at most 256 characters"]),
        ("register.alpha", 0, ["register.alpha: 0 is not allowed", "greater than 0"]),
        ("train", [1], ["train: [1] is not allowed", "keys with values"]),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_is_allowed(
    content: Content, complaint: Callable[[str], str], name: str, value: object, fragments: list[str]
) -> None:
    line = complaint(put(content, name, value))
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("train.epoch", ["train.epoch: unknown key (value 1)", "did you mean train.epochs?"]),
        ("train.momentun", ["did you mean train.momentum?"]),
        ("train.augmentation.shifts", ["did you mean train.augmentation.shift?", "horizontal_flip"]),
        ("train.learning_rate", ["train.learning_rate: unknown key (value 1)", "valid here:", " lr,"]),
        ("trian", ["trian: unknown key (value 1)", "did you mean train?"]),
        ("lr", ["lr: unknown key (value 1)", "train.lr"]),
        ("epochs", ["did you mean train.epochs?"]),
        ("shift", ["did you mean train.augmentation.shift?"]),
        ("dropout", ["did you mean model.dropout?"]),
        ("train.dropout", ["train.dropout: unknown key (value 1)", "did you mean model.dropout?"]),
        ("xyzzy", ["xyzzy: unknown key (value 1)", "valid here: download, kernel_check,"]),
    ],
)
def test_an_unknown_key_is_told_with_the_closest_valid_one(
    content: Content, complaint: Callable[[str], str], name: str, fragments: list[str]
) -> None:
    line = complaint(put(content, name, 1))
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize("key", ["train.lr", "foo.bar", "train.foo.bar", "kernel_check.seeds.0", ".", "a\nb", "", "7"])
@pytest.mark.parametrize("section", [None, "train", "model"])
def test_odd_keys_are_unknown_like_any_other(
    content: Content, complaint: Callable[[str], str], section: str | None, key: str
) -> None:
    (content[section] if section else content)[key] = 1
    assert "unknown key (value 1)" in complaint(yaml.safe_dump(content))


@pytest.mark.parametrize("key", [1, 1.5, None, True, date(2020, 1, 1), (1, 2), ((1,),)], ids=str)
@pytest.mark.parametrize("section", [None, "train"])
def test_keys_that_are_no_text_are_refused(
    content: Content, complaint: Callable[[str], str], section: str | None, key: object
) -> None:
    (content[section] if section else content)[key] = 1
    assert complaint(yaml.safe_dump(content)) != ""


@pytest.mark.parametrize("name", ["train", "train.lr", "train.augmentation", "train.augmentation.shift", "register"])
def test_a_missing_key_is_told(content: Content, complaint: Callable[[str], str], name: str) -> None:
    *sections, key = name.split(".")
    place = content
    for section in sections:
        place = place[section]
    del place[key]
    assert complaint(yaml.safe_dump(content)).startswith(f"{name}: missing")


def test_every_mistake_is_told_at_once(content: Content, complaint: Callable[[str], str]) -> None:
    content["train"]["lr"] = content["train"]["epochs"] = -1
    del content["model"]
    line = complaint(yaml.safe_dump(content))
    for name in ("train.lr: -1", "train.epochs: -1", "model: missing"):
        assert name in line


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"optimizer": "adamw", "momentum": 0.9}, ["train.momentum is for sgd", "set it to 0"]),
        ({"patience": 3}, ["train.patience", "data.validation_size is 0"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    content: Content, complaint: Callable[[str], str], changes: Content, fragments: list[str]
) -> None:
    content["data"]["validation_size"] = 0
    content["train"] |= changes
    line = complaint(yaml.safe_dump(content))
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize(
    "changes", [{"optimizer": "adamw"}, {"momentum": 0.9}, {"patience": 3}, {"weights": "last", "patience": 1}], ids=str
)
def test_settings_that_agree_are_accepted(content: Content, path: Path, changes: Content) -> None:
    content["train"] |= changes
    path.write_text(yaml.safe_dump(content))
    assert load_params(path).train.model_dump() == content["train"]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["must hold the sections download, kernel_check,", "None"]),
        ("# nothing but a comment\n", ["must hold the sections"]),
        ("- train\n- model\n", ["must hold the sections", "['train', 'model']"]),
        ("just words", ["must hold the sections", "'just words'"]),
        ("train: [1, 2\nmodel: 3\n", ["not valid YAML in line 2, column 6"]),
        ("train:\n\tlr: 1\n", ["not valid YAML in line 2, column 1"]),
        ("train: {lr: 1}\nmodel: 1\ntrain: 2\n", ["line 3, column 1", "'train' stands twice"]),
        ("train: {lr: 1, epochs: 2, lr: 3}\n", ["line 1, column 27", "'lr' stands twice"]),
        ("train: 1\n---\nmodel: 1\n", ["not valid YAML in line 2"]),
        (b"train: caf\xe9\n", ["not valid YAML", "position 10"]),
        (b"\xff\xfe\xff", ["not valid YAML"]),
        ("train: \0\n", ["not valid YAML", "#x0000"]),
        ("train: !!python/object/apply:os.getcwd []\n", ["not valid YAML in line 1, column 8"]),
        ("train: 2020-13-45\n", ["a value cannot be read", "month"]),
        ("train: !!int x\n", ["a value cannot be read"]),
        ("train: !!int ''\n", ["a value cannot be read"]),
        ("train: !!bool x\n", ["a value cannot be read"]),
        ("train: !!timestamp x\n", ["a value cannot be read"]),
        ("? [a, b]\n: 1\n", ["line 1, column 3"]),
        ("? {a: b}\n: 1\n", ["line 1, column 3"]),
        ("train: " + "[" * 600, [""]),
        ("train: &all [*all]\n", ["train: [[...]] is not allowed"]),
        ("train: 0x" + "f" * 5000, ["train: "]),
        ("train: {lr: 0x" + "f" * 5000 + "}", ["train.lr: "]),
        ("train: {epochs: " + "9" * 5000 + "}", [""]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(
    complaint: Callable[[str | bytes], str], text: str | bytes, fragments: list[str]
) -> None:
    line = complaint(text)
    assert 0 < len(line) < 2000
    for fragment in fragments:
        assert fragment in line


def test_a_missing_file_is_told(path: Path) -> None:
    assert "not found" in shown(path)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70_000),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.dates(),
    st.sampled_from(["sgd", "relu", "1e-3", "0x1f", "1:30", "yes", "<<", "=", "debian", "10" * 30]),
)
KEYS = st.one_of(
    st.sampled_from(["train", "lr", "train.lr", "train.x.y", "a.b", "", "<<", "epoch", "seeds.0"]),
    st.text(max_size=6),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.dates(),
    st.tuples(st.integers(), st.text(max_size=3)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[list[int], str, Any, Any]:
    where = draw(st.lists(st.integers(0, 20), min_size=1, max_size=3))
    return where, draw(st.sampled_from(["replace", "delete", "add", "rename"])), draw(KEYS), draw(VALUES)


def mutate(content: Content, where: list[int], action: str, key: Any, value: Any) -> None:
    place: Any = content
    *outer, last = where
    for number in outer:
        inner = list(place.values())[number % len(place)]
        if not isinstance(inner, dict) or not inner:
            break
        place = inner
    if action == "add" or not place:
        place[key] = value
        return
    name = list(place)[last % len(place)]
    if action == "replace":
        place[name] = value
    else:
        taken = place.pop(name)
        if action == "rename":
            place[key] = taken


@settings(max_examples=200)
@given(st.lists(mutations(), min_size=1, max_size=3))
@example([([0], "add", "foo.bar", 1)])
@example([([4, 0], "rename", (1, 2), 1)])
def test_whatever_is_changed_in_params_it_loads_or_is_told_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, params: Params, changes: list[tuple[list[int], str, Any, Any]]
) -> None:
    content = deepcopy(params.model_dump(by_alias=True))
    for change in changes:
        mutate(content, *change)
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True).encode())
    shown(path)


@settings(max_examples=100)
@given(st.data())
def test_whatever_is_typed_into_params_it_loads_or_is_told_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, params: Params, data: st.DataObject
) -> None:
    text = yaml.safe_dump(params.model_dump(by_alias=True)).encode()
    start = data.draw(st.integers(0, len(text)))
    typed = data.draw(st.binary(max_size=4) | st.text(" \n:-[]{}&*!?#|>'\"%@`.,0x", max_size=6).map(str.encode))
    path = tmp_path_factory.getbasetemp() / "typed.yaml"
    path.write_bytes(text[:start] + typed + text[start + data.draw(st.integers(0, 10)) :])
    shown(path)


@pytest.mark.parametrize(
    ("value", "meant"), [("010", "10"), ("09", "9"), ("0o17", "15"), ("-012", "-12"), ("[1, 010]", "10")]
)
def test_a_number_that_two_readers_take_differently_is_refused_with_what_to_write(
    complaint: Callable[[str | bytes], str], value: str, meant: str
) -> None:
    line = complaint(f"train: {{epochs: {value}}}")
    assert "train.epochs" in line
    assert f"{meant} to DVC" in line
    assert line.endswith(f"write {meant}")


@pytest.mark.parametrize("value", ["on", "off", "yes", "1:30", "1:30.5", "n", ".5e3", "0b2"])
def test_a_word_means_what_dvc_takes_it_for(value: str) -> None:
    assert parse_yaml(f"register: {{experiment: {value}}}".encode(), Path("params.yaml")) == {
        "register": {"experiment": value}
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_what_dvc_cannot_decode_is_refused(complaint: Callable[[str | bytes], str], encoding: str) -> None:
    assert "DVC reads nothing but UTF-8" in complaint("train: {epochs: 1} # \xe9\n".encode(encoding))
