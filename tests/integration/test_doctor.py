"""`lenet5 doctor` in a workspace that is well, and in one where everything is wrong."""

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from lenet5.data.fashion_mnist import RAW_DIR

from .conftest import Project, in_own_mounts

DOCTOR = ("lenet5", "doctor")


def findings(project: Project, **env: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status, and each subject's last level and text."""
    done = project.run(*DOCTOR, check=False, **env)
    assert done.stderr == ""
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return done.returncode, {subject: (level, text) for level, subject, text in lines}


@pytest.fixture
def well(pipeline_copy: Project) -> Project:
    """A finished project whose lock names what is installed here, which need not be what the repository's names."""
    (pipeline_copy.path / "requirements.lock").write_text(f"mlflow=={version('mlflow')}\n")
    pipeline_copy.commit()
    return pipeline_copy


def test_a_finished_workspace_is_well_and_what_needs_doing_is_said(well: Project) -> None:
    status, found = findings(well)
    assert status == 0
    for subject in ("python", "packages", "params", "git", "dvc", "mlflow", "stores", "data", "disk"):
        assert found[subject][0] == "ok", found[subject]
    assert "1 runs, schema" in found["mlflow"][1]
    well.edit({"export.opset": 21})
    status, found = findings(well)
    assert status == 0
    assert found["git"] == ("note", found["git"][1])
    assert "uncommitted changes (files: 1)" in found["git"][1]
    assert found["dvc"][1] == "changed since they ran: export; `dvc repro` runs them"


def test_what_is_wrong_is_named_with_the_way_out_and_status_1(well: Project) -> None:
    labels = well.path / RAW_DIR / "t10k-labels-idx1-ubyte"
    labels.unlink()  # a link into DVC's cache, perhaps
    labels.write_bytes(b"damaged")
    well.edit({"train.epochs": 0})
    (well.path / "requirements.lock").write_text("no-such-package==1\n")
    (well.path / "mlruns/0").mkdir()
    (well.path / "mlruns/0/meta.yaml").touch()
    (well.path / "mlflow.db").write_bytes(b"damaged")
    status, found = findings(well)
    assert status == 1
    for subject, said in {
        "packages": "1 missing: no-such-package",
        "params": "train.epochs: 0 is not allowed",
        "mlflow": "make record",
        "stores": "mlruns/0",
        "data": "`dvc repro -f download`",
    }.items():
        level, text = found[subject]
        assert level == "problem"
        assert said in text


@pytest.mark.soak
def test_a_bare_machine_is_told_what_it_lacks_and_training_does_as_it_says(well: Project, tmp_path: Path) -> None:
    for name in ("git", "sh"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    bare = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{tmp_path}", "CUDA_VISIBLE_DEVICES": "", "CXX": "g++"}
    status, found = findings(well, **bare)
    assert status == 0
    assert found["chromium"] == ("note", found["chromium"][1])
    assert found["compiler"][1].startswith("not found (g++); training on a CPU is less than a third as fast; ")
    assert "engine eager" in well.run("python", "stages/train.py", **bare).stdout
    if shutil.which("g++"):
        assert findings(well)[1]["compiler"][0] == "ok"


@pytest.mark.soak
def test_cuda_without_a_driver_is_a_problem_where_it_is_asked_for_and_auto_mends_it(well: Project) -> None:
    if not findings(well)[1]["cuda"][1].startswith("no NVIDIA driver answers"):
        pytest.skip("there is a driver here")
    well.edit({"train.device": "cuda"})
    status, found = findings(well)
    assert (status, found["cuda"][0]) == (1, "problem")
    assert "set it to auto" in found["cuda"][1]
    assert "train.device: cuda, but " in well.run("python", "stages/train.py", check=False).stderr
    well.edit({"train.device": "auto"})
    assert findings(well)[1]["cuda"][0] == "note"
    assert "on cpu" in well.run("python", "stages/train.py").stdout


@pytest.mark.soak
@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize(("megabytes", "level"), [(300, "problem"), (2000, "note"), (4000, "ok")])
def test_a_small_disk_is_told(well: Project, megabytes: int, level: str) -> None:
    script = f"mount -t tmpfs -o size={megabytes}m none /mnt; cp -r . /mnt; cd /mnt; lenet5 doctor | grep disk"
    done = in_own_mounts(well, script, PYTHONPATH="/mnt/src")
    assert done.stdout.startswith(f"{level:<8}disk"), done


def test_neither_pytorch_nor_mlflow_is_imported(well: Project) -> None:
    program = (
        "import sys; from lenet5.commands.cli import main\n"
        "try: main(['doctor'])\n"
        "finally: print([name for name in ('torch', 'mlflow', 'dvc') if name in sys.modules])"
    )
    assert well.run("python", "-c", program).stdout.endswith("[]\n")
