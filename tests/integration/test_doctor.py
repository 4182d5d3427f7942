"""`lenet5 doctor` in a workspace that is well, and in one where everything is wrong."""

from importlib.metadata import version

import pytest

from lenet5.fashion_mnist import RAW_DIR

from .conftest import Project

DOCTOR = ("python", "-m", "lenet5.cli", "doctor")


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
    assert "1 uncommitted" in found["git"][1]
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


def test_neither_pytorch_nor_mlflow_is_imported(well: Project) -> None:
    program = (
        "import sys; from lenet5.cli import main\n"
        "try: main(['doctor'])\n"
        "finally: print([name for name in ('torch', 'mlflow', 'dvc') if name in sys.modules])"
    )
    assert well.run("python", "-c", program).stdout.endswith("[]\n")
