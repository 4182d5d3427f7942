import ast
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from lenet5 import outs
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.network.edges import KERNELS
from lenet5.params import Params
from lenet5.results.figures import ORANGE, PURPLE, SPLIT_COLOURS
from lenet5.results.history import EpochRow

from .test_walls import MODULES, modules_of

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src/lenet5"
PIPELINE: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]

# They read, write, show and record; none of them can change what an out holds.
CHANGE_NO_OUT = {
    "dialect", "errors", "files", "findings", "outs", "params", "processors", "stage", "workspace",
    "training.card_errors", "training.cards", "training.checkpoint", "training.display", "training.replicas",
    *(module for module in MODULES if module.startswith(("record.", "commands."))),
}  # fmt: skip


def reached_from(script: Path) -> set[str]:
    """Every module that can change what ``script`` makes."""
    reached: set[str] = set()
    waiting = modules_of(script)
    while waiting := waiting - reached - CHANGE_NO_OUT:
        reached |= waiting
        waiting = {name for module in waiting for name in modules_of(MODULES[module])}
    return reached


def outs_of(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in [*stage.get("outs", []), *stage.get("metrics", [])]:
        found |= entry if isinstance(entry, dict) else {entry: {}}
    return found


def source_deps(name: str) -> set[str]:
    paths = [
        Path(dep).relative_to("src/lenet5")
        for dep in STAGES[name]["deps"]
        if dep.startswith("src/") and dep.endswith(".py")
    ]
    return {".".join(path.with_suffix("").parts) for path in paths}


@pytest.mark.parametrize("name", [name for name in STAGES if name != "register"])
def test_a_stage_depends_on_exactly_the_code_that_can_change_what_it_makes(name: str) -> None:
    reached = reached_from(REPOSITORY / f"stages/{name}.py")
    assert source_deps(name) == reached
    kernels = SOURCE / "training/kernels"
    compiled = {path.relative_to(REPOSITORY).as_posix() for path in kernels.iterdir() if "training.lanes" in reached}
    assert {dep for dep in STAGES[name]["deps"] if "/kernels/" in dep} == compiled


def test_register_depends_on_the_rule_of_promotion_and_not_on_how_the_record_is_written() -> None:
    script = REPOSITORY / "stages/register.py"
    reached = modules_of(script) | {name for module in modules_of(script) for name in modules_of(MODULES[module])}
    reached |= modules_of(MODULES["record.versions"])
    assert {"record.promotion"} <= source_deps("register") <= reached


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_script_and_depends_on_it(name: str) -> None:
    assert STAGES[name]["cmd"] == f"python stages/{name}.py"
    assert f"stages/{name}.py" in STAGES[name]["deps"]


def test_every_script_is_a_stage() -> None:
    assert {path.stem for path in (REPOSITORY / "stages").glob("*.py")} == {*STAGES, "beside"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_imports_what_lies_beside_it_before_all_else(name: str) -> None:
    tree = ast.parse((REPOSITORY / f"stages/{name}.py").read_text())
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    assert isinstance(first, ast.ImportFrom)
    assert first.module == "beside"


def test_every_dep_is_a_file_of_the_repository_or_an_out_of_another_stage() -> None:
    made = {path: name for name, stage in STAGES.items() for path in outs_of(stage)}
    for name, stage in STAGES.items():
        assert len(stage["deps"]) == len(set(stage["deps"])), name
        for dep in stage["deps"]:
            if dep.startswith(("src/", "stages/")):
                assert (REPOSITORY / dep).is_file(), dep
            else:
                assert made[dep] != name


def test_the_outs_are_where_the_code_writes_them() -> None:
    named = {path.as_posix() for path in vars(outs).values() if isinstance(path, Path)}
    assert {path for stage in STAGES.values() for path in outs_of(stage)} == named | {RAW_DIR.as_posix()}


def test_the_headline_alone_is_a_metric_and_stands_in_every_clone() -> None:
    metrics = [entry for stage in STAGES.values() for entry in stage.get("metrics", [])]
    assert metrics == [{outs.HEADLINE.as_posix(): {"cache": False, "persist": True}}]


@pytest.mark.parametrize("name", STAGES)
def test_a_failed_stage_leaves_the_earlier_outs_alone_and_train_keeps_its_run_cache(name: str) -> None:
    for path, settings in outs_of(STAGES[name]).items():
        assert settings.get("persist", False) == (name != "train"), path
        assert name != "train" or settings.get("cache", True), path


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_params_it_reads(name: str, repository: Path) -> None:
    tree = ast.parse((repository / f"stages/{name}.py").read_text())
    read = {
        node.attr.rstrip("_")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    assert read <= set(STAGES[name]["params"])


def test_every_section_of_params_belongs_to_a_stage() -> None:
    sections = {field.alias or name for name, field in Params.model_fields.items()}
    assert {section for stage in STAGES.values() for section in stage["params"]} == sections


def test_plots_show_columns_that_are_there() -> None:
    columns = {
        "plots/history.csv": {field.name for field in fields(EpochRow)},
        "plots/predictions.csv": {"true", "predicted", "probability"},
        "plots/kernel_check.csv": {"seed", "step", *KERNELS},
    }
    for entry in PIPELINE["plots"]:
        if isinstance(entry, str):
            assert any(entry in outs_of(stage) for stage in STAGES.values())
            continue
        (plot,) = entry.values()
        for path, names in plot["y"].items():
            shown = {plot["x"], *([names] if isinstance(names, str) else names)} if "x" in plot else {names}
            assert shown <= columns[path], path


def test_dvcs_plots_have_the_colours_of_the_pictures() -> None:
    template = json.loads((REPOSITORY / ".dvc/plots/curves.json").read_text())
    drawn = template["encoding"]["color"]["scale"]["range"]
    assert drawn == [SPLIT_COLOURS[split] for split in ("train", "validation", "test")]
    page = (REPOSITORY / ".dvc/plots/page.html").read_text()
    assert f"COLOURS = {json.dumps([*drawn, PURPLE, ORANGE])}" in page


def test_the_artifact_is_the_onnx_model() -> None:
    (artifact,) = PIPELINE["artifacts"].values()
    assert artifact["path"] == outs.ONNX.as_posix()
