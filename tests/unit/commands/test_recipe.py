import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lenet5.commands.confirmation import how_trained
from lenet5.commands.recipe import apply
from lenet5.errors import UserError
from lenet5.params import Params, load_params


@pytest.fixture
def params(content: dict[str, Any], tmp_path: Path) -> Path:
    """Valid params in the form in which DVC writes them, each with a comment."""
    path = tmp_path / "params.yaml"
    text = yaml.safe_dump(content, sort_keys=False).replace(": null", ":")
    path.write_text(re.sub(r": (\S+)$", r": \1 # why", text, flags=re.MULTILINE))
    return path


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "wanted.yaml"
    path.write_text(text)
    return path


def test_only_the_lines_of_what_is_set_change_and_keep_their_comments(params: Path, tmp_path: Path) -> None:
    apply(written(tmp_path, "train: {epochs: 7, augmentation: {shift: 4}}\nmodel: {c3: full}"), params)
    before = params.read_text().splitlines()
    edits = apply(written(tmp_path, "train: {epochs: 9, augmentation: {shift: 1}}\nmodel: {c3: paper}"), params)
    assert edits == [("train.epochs", 7, 9), ("train.augmentation.shift", 4, 1), ("model.c3", "full", "paper")]
    changed = {(old, new) for old, new in zip(before, params.read_text().splitlines(), strict=True) if old != new}
    assert {(old.split(" #")[0], new.split(" #")[0]) for old, new in changed} == {
        ("  c3: full", "  c3: paper"),
        ("  epochs: 7", "  epochs: 9"),
        ("    shift: 4", "    shift: 1"),
    }
    assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in changed)


def test_the_line_ends_of_windows_stay(params: Path, tmp_path: Path) -> None:
    text = params.read_bytes().replace(b"\n", b"\r\n")
    params.write_bytes(text)
    apply(written(tmp_path, f"train: {{epochs: {load_params(params).train.epochs + 1}}}"), params)
    before, after = (content.splitlines(keepends=True) for content in (text, params.read_bytes()))
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    assert all(line.endswith(b"\r\n") for line in after)


def test_setting_what_is_there_already_leaves_the_file_alone(params: Path, tmp_path: Path) -> None:
    time = params.stat().st_mtime_ns
    assert apply(written(tmp_path, f"train: {{seed: {load_params(params).train.seed}}}"), params) == []
    assert params.stat().st_mtime_ns == time


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml")), ids=lambda file: file.stem
)
def test_a_recipe_leaves_nothing_of_the_one_that_was_set_before(file: Path, content: dict[str, Any]) -> None:
    recipe = yaml.safe_load(file.read_text())
    trained = how_trained(Params.model_validate(content))
    assert recipe["model"].keys() == trained["model"].keys()
    assert recipe["train"].keys() | {"precision"} == trained["train"].keys()  # a matter of the machine, too
    assert recipe["train"]["augmentation"].keys() == trained["train"]["augmentation"].keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epoch: 9}", "train.epoch: unknown key (value 9); did you mean train.epochs?"),
        ("train: {lr: fast}", "train.lr: 'fast' is not allowed"),
        ("train: 3", "train: 3 is not allowed"),
        ("train: {lr: {a: 1}}", "train.lr: {'a': 1} is not allowed"),
        ("1: {lr: 2}", "keys should be strings"),
        ("train: {optimizer: adamw, momentum: 0.9}", "train.momentum is for sgd"),
        ("train: {lr: 1, lr: 2}", "stands twice"),
        ("- train", "must hold the sections"),
        ("", "must hold the sections"),
        ("{", "not valid YAML"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(params: Path, tmp_path: Path, text: str, said: str) -> None:
    before = params.read_bytes()
    file = written(tmp_path, text)
    with pytest.raises(UserError) as refused:
        apply(file, params)
    assert str(refused.value).startswith(f"{file}: ")
    assert said in str(refused.value)
    assert params.read_bytes() == before


def test_a_missing_file_or_a_folder_is_refused(params: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="no such file; recipes/"):
            apply(path, params)


def test_every_recipe_that_comes_with_the_project_fits_its_params(params: Path, repository: Path) -> None:
    recipes = sorted((repository / "recipes").glob("*.yaml"))
    assert recipes
    original = params.read_bytes()
    for file in recipes:
        params.write_bytes(original)
        apply(file, params)
        load_params(params)
