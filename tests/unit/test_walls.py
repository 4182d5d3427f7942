"""The rooms of the package, and which of them may know which."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src/lenet5"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
}

# From the ground up; rooms of one floor are strangers.
FLOORS = [
    {"errors"},
    {"dialect", "files", "findings", "outs", "params", "processors", "workspace"},
    {"stage", "data"},
    {"network"},
    {"results"},
    {"record", "training"},
    {"search"},
    {"commands"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST, LONGEST_OF_RECORD = 350, 250

# A library that could be exchanged is known to one room, or to one file of it.
KNOWN_TO = {
    "mlflow": "record.",
    "matplotlib": "results.figures",
    "optuna": "search.study",
    "ray": "search.cluster",
}


def imports(path: Path) -> Iterator[str]:
    """The full names of everything ``path`` imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of(path: Path) -> set[str]:
    """The modules of the package that ``path`` imports."""
    names = [name.removeprefix("lenet5.") for name in imports(path) if name.startswith("lenet5.")]
    found = {module for name in names for module in MODULES if f"{name}.".startswith(f"{module}.")}
    assert len(found) >= len({name for name in names if name.split(".")[0] not in FLOOR}), path
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_is_in_a_room_that_has_a_floor() -> None:
    assert {room(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_lists_the_rooms_from_the_top_floor_down(name: str) -> None:
    listed = re.findall(r"^\| \[`(\w+)/`\]\(src/lenet5/(\w+)\)", (REPOSITORY / name).read_text(), re.MULTILINE)
    rooms = [room for room, folder in listed if room == folder]
    assert set(rooms) == {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == sorted(rooms, key=lambda room: -FLOOR[room])


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down_the_floors_or_stay_in_their_room(module: str) -> None:
    own = room(module)
    for imported in modules_of(MODULES[module]):
        other = room(imported)
        same_room = other == own or FLOOR[own] == FLOOR[other] == 1  # the ground is one room
        assert same_room or FLOOR[other] < FLOOR[own], f"{module} imports {imported}"


def test_there_is_no_cycle_of_imports() -> None:
    TopologicalSorter({module: modules_of(path) for module, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("library", KNOWN_TO)
def test_a_library_that_could_be_exchanged_is_known_to_one_room(library: str) -> None:
    scripts = MODULES | {f"stages.{path.stem}": path for path in (REPOSITORY / "stages").glob("*.py")}
    importing = {name for name, path in scripts.items() if any(name.split(".")[0] == library for name in imports(path))}
    assert importing
    assert all(name.startswith(KNOWN_TO[library]) for name in importing), importing


@pytest.mark.parametrize(
    ("module", "absent"), [("predict", ("torch", "mlflow")), ("cli", ("torch", "mlflow", "onnxruntime", "numpy"))]
)
def test_a_command_does_not_wait_for_what_it_does_not_use(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, lenet5.commands.{module}; print(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_needs_nothing_but_torch_numpy_and_pydantic() -> None:
    blocked = ("dvc", "mlflow", "pandas", "rich", "yaml", "torchvision", "matplotlib", "scipy", "sklearn", "onnx",
               "requests", "filelock", "psutil", "pynvml", "ruamel", "joblib")  # fmt: skip
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"sys.path.insert(0, {str(REPOSITORY / 'bench')!r})\n"
        "import lenet5.training.replicas, lenet5.training.checkpoint, lenet5.training.loop, gpu\n"
        "from lenet5.training.device import pick_device; print(pick_device('auto').type)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("cpu", "cuda")


def test_a_file_can_be_read_in_one_sitting() -> None:
    for path in (*SOURCE.rglob("*.py"), *SOURCE.rglob("*.[ch]pp")):
        lines = len(path.read_text().splitlines())
        assert lines <= (LONGEST_OF_RECORD if path.parent.name == "record" else LONGEST), path
