import ast
from collections.abc import Iterator
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lenet5 import outs
from lenet5.fashion_mnist import RAW_DIR
from lenet5.history import EpochRow
from lenet5.params import Params

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src/lenet5"
MODULES = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
PIPELINE: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]

# They read, write, show and record; none of them can change what an out holds.
CHANGE_NO_OUT = {
    "attempt", "checkpoint", "display", "errors", "experiment_page", "files", "lineage", "outs", "params", "record",
    "replicas", "seeds", "stage", "streaming", "tracking", "workspace",
}  # fmt: skip

# From the ground up: each module imports only what stands before it.
ORDER = [
    "errors", "files", "attempt", "workspace", "outs", "convolution", "history", "params", "fashion_mnist", "sources",
    "datasets", "model", "edge_kernel", "promotion", "recipe", "evaluation", "cuda_graph", "compiler", "lanes",
    "engine", "training", "replicas", "export", "figures", "display", "record", "lineage", "model_card", "checkpoint",
    "streaming", "experiment_page", "tracking", "stage", "reproduce", "seeds", "images", "predict", "serve", "doctor",
    "compare", "params_edit", "cli",
]  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """The full names of everything ``path`` imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports(path)]
    found = {part[1] for part in parts if part[0] == "lenet5"}
    assert found <= MODULES, path
    return found


def reached_from(script: Path) -> set[str]:
    """Every module that can change what ``script`` makes."""
    reached: set[str] = set()
    waiting = modules_of(script)
    while waiting := waiting - reached - CHANGE_NO_OUT:
        reached |= waiting
        waiting = {name for module in waiting for name in modules_of(SOURCE / f"{module}.py")}
    return reached


def outs_of(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in [*stage.get("outs", []), *stage.get("metrics", [])]:
        found |= entry if isinstance(entry, dict) else {entry: {}}
    return found


def source_deps(name: str) -> set[str]:
    return {Path(dep).stem for dep in STAGES[name]["deps"] if dep.startswith("src/")}


@pytest.mark.parametrize("name", [name for name in STAGES if name != "register"])
def test_a_stage_depends_on_exactly_the_code_that_can_change_what_it_makes(name: str) -> None:
    reached = reached_from(REPOSITORY / f"stages/{name}.py")
    assert source_deps(name) == reached
    compiled = {f"src/lenet5/{path.name}" for path in SOURCE.glob("*.cpp") if path.stem in reached}
    assert compiled <= set(STAGES[name]["deps"])


def test_register_depends_on_the_rule_of_promotion_and_not_on_how_the_record_is_written() -> None:
    reached = modules_of(REPOSITORY / "stages/register.py") | modules_of(SOURCE / "tracking.py")
    assert {"promotion"} <= source_deps("register") <= reached


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_script_and_depends_on_it(name: str) -> None:
    assert STAGES[name]["cmd"] == f"python stages/{name}.py"
    assert f"stages/{name}.py" in STAGES[name]["deps"]


def test_every_script_is_a_stage() -> None:
    assert {path.stem for path in (REPOSITORY / "stages").glob("*.py")} == set(STAGES)


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


@pytest.mark.parametrize("name", STAGES)
def test_a_failed_stage_leaves_the_earlier_outs_alone_and_train_keeps_its_run_cache(name: str) -> None:
    for path, settings in outs_of(STAGES[name]).items():
        assert settings.get("persist", False) == (name != "train"), path
        assert name != "train" or settings.get("cache", True), path


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_params_it_reads(name: str, repository: Path) -> None:
    known = yaml.safe_load((repository / "params.yaml").read_text())
    assert set(STAGES[name]["params"]) <= set(known)
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
        "plots/kernel_check.csv": {"seed", "step", "loss"},
    }
    for entry in PIPELINE["plots"]:
        if isinstance(entry, str):
            assert any(entry in outs_of(stage) for stage in STAGES.values())
            continue
        (plot,) = entry.values()
        for path, names in plot["y"].items():
            shown = {plot["x"], *([names] if isinstance(names, str) else names)} if "x" in plot else {names}
            assert shown <= columns[path], path


def test_the_artifact_is_the_onnx_model() -> None:
    (artifact,) = PIPELINE["artifacts"].values()
    assert artifact["path"] == outs.ONNX.as_posix()


@pytest.mark.parametrize(("library", "module"), [("mlflow", "tracking"), ("matplotlib", "figures")])
def test_a_library_that_could_be_exchanged_is_imported_in_one_place(library: str, module: str) -> None:
    scripts = [*SOURCE.glob("*.py"), *(REPOSITORY / "stages").glob("*.py")]
    importing = [path.stem for path in scripts if any(name.split(".")[0] == library for name in imports(path))]
    assert importing == [module]


def test_there_is_no_cycle_of_imports() -> None:
    TopologicalSorter({module: modules_of(SOURCE / f"{module}.py") for module in MODULES}).prepare()


def test_modules_import_only_downwards() -> None:
    assert set(ORDER) == MODULES
    for place, module in enumerate(ORDER):
        assert modules_of(SOURCE / f"{module}.py") <= set(ORDER[:place]), module
