import http.server
import sqlite3
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pynvml
import pytest

from lenet5 import doctor
from lenet5.doctor import Finding

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def only(check: Callable[[], Iterator[Finding]]) -> Finding:
    (finding,) = check()
    return finding


def lock(*pins: str) -> None:
    content = "".join(f"{pin} \\\n    --hash=sha256:{'0' * 64}\n    # via something\n" for pin in pins)
    Path("requirements.lock").write_text(content)


def test_packages_as_locked_are_ok_and_those_of_other_systems_are_not_asked_for() -> None:
    lock(f"numpy=={version('numpy')}", "no-such-package==1 ; sys_platform == 'plan9'")
    assert only(doctor.check_packages) == Finding("ok", "packages", "all 1 as requirements.lock pins them")


def test_a_missing_package_is_a_problem_and_another_version_a_note() -> None:
    lock("no-such-package==1.0", "numpy==1.0", "another-one==3 ; python_full_version >= '3.8'")
    missing, other = doctor.check_packages()
    assert missing.level == "problem"
    assert "2 missing: no-such-package, another-one; `python -m pip install" in missing.text
    assert other.level == "note"
    assert f"numpy {version('numpy')}, not 1.0" in other.text


def test_a_build_of_the_locked_version_for_one_kind_of_gpu_is_that_version(monkeypatch: pytest.MonkeyPatch) -> None:
    lock("torch==2.14.1")
    monkeypatch.setattr(doctor, "version", lambda _: "2.14.1+cu130")
    assert only(doctor.check_packages).level == "ok"


def record(schema: str) -> None:
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num)")
        database.execute("CREATE TABLE runs (lifecycle_stage)")
        database.execute("INSERT INTO alembic_version VALUES (?)", [schema])
        database.executemany("INSERT INTO runs VALUES (?)", [["active"], ["active"], ["deleted"]])


@pytest.mark.parametrize(
    ("schema", "level", "said"),
    [("451aebb31d03", "problem", "mlflow db upgrade sqlite:///"), ("from_the_future", "problem", "newer MLflow")],
)
def test_a_record_of_another_mlflow_is_a_problem(schema: str, level: str, said: str) -> None:
    record(schema)
    finding = only(doctor.check_store)
    assert finding.level == level
    assert said in finding.text


def test_a_record_that_is_none_is_a_problem_and_none_yet_is_not(workspace: Path) -> None:
    assert only(doctor.check_store).level == "note"
    for content in (b"", b"This is no database."):
        (workspace / "mlflow.db").write_bytes(content)
        finding = only(doctor.check_store)
        assert finding.level == "problem"
        assert "make record" in finding.text


class Versioned(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/version" or self.headers["Authorization"] == "Bearer a-token"
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"3.17.2")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_answers_refuses_or_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Versioned) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}/")
        answering = only(doctor.check_store)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@{address}/private")
        refusing = only(doctor.check_store)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}/private")
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
        knowing = only(doctor.check_store)
        server.shutdown()
        thread.join()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
    gone = only(doctor.check_store)
    assert (answering.level, refusing.level, knowing.level, gone.level) == ("ok", "note", "ok", "problem")
    assert "MLflow 3.17.2" in answering.text
    assert "unset MLFLOW_TRACKING_URI" in gone.text
    assert "secret" not in refusing.text


def test_stray_stores_are_found(workspace: Path) -> None:
    assert only(doctor.check_stray_stores).level == "ok"
    (workspace / "mlruns/lenet5/0123/artifacts").mkdir(parents=True)
    assert only(doctor.check_stray_stores).level == "ok"
    (workspace / "mlruns/0").mkdir()
    (workspace / "mlruns/0/meta.yaml").write_text("name: Default")
    (workspace / "stages").mkdir()
    (workspace / "stages/mlflow.db").touch()
    old, apart = doctor.check_stray_stores()
    assert old.level == "problem"
    assert "mlruns/0;" in old.text
    assert apart.level == "note"
    assert "stages/mlflow.db" in apart.text


def test_data_that_is_not_there_is_a_note_and_damaged_data_a_problem(workspace: Path) -> None:
    folder = workspace / "data/FashionMNIST/raw"
    folder.mkdir(parents=True)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    damaged, missing = doctor.check_data()
    assert (damaged.level, missing.level) == ("problem", "note")
    assert "t10k-labels-idx1-ubyte; `dvc repro -f download`" in damaged.text
    assert "t10k-labels" not in missing.text


@pytest.mark.parametrize(("free", "level"), [(0.1, "problem"), (1.0, "note"), (50.0, "ok")])
def test_little_room_is_told(monkeypatch: pytest.MonkeyPatch, free: float, level: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(0, 0, int(free * 2**30)))
    assert only(doctor.check_disk).level == level


def with_driver(monkeypatch: pytest.MonkeyPatch, cuda: int, gpus: int) -> None:
    answers = {
        "nvmlInit": None, "nvmlShutdown": None, "nvmlSystemGetDriverVersion": "580.95",
        "nvmlSystemGetCudaDriverVersion_v2": cuda, "nvmlDeviceGetCount": gpus, "nvmlDeviceGetHandleByIndex": None,
        "nvmlDeviceGetName": "A GPU",
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(doctor, "_installed", lambda _: "13.0.3.0")


@pytest.mark.parametrize(
    ("cuda", "gpus", "level", "said"),
    [
        (13000, 2, "ok", "A GPU, A GPU; driver 580.95, CUDA 13"),
        (12040, 1, "problem", "install a newer driver"),
        (13010, 0, "note", "no GPU"),
    ],
)
def test_a_driver_too_old_for_pytorch_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, cuda: int, gpus: int, level: str, said: str
) -> None:
    with_driver(monkeypatch, cuda, gpus)
    finding = only(doctor.check_cuda)
    assert finding.level == level
    assert said in finding.text


def test_no_driver_is_a_problem_only_where_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert only(doctor.check_cuda).level == "note"
    monkeypatch.setattr(doctor, "_device_wished", lambda: "cuda")
    finding = only(doctor.check_cuda)
    assert finding.level == "problem"
    assert "set it to auto" in finding.text


def test_a_driver_without_a_gpu_is_a_problem_where_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, 13000, 0)
    monkeypatch.setattr(doctor, "_device_wished", lambda: "cuda")
    assert only(doctor.check_cuda).level == "problem"


def test_without_the_package_that_asks_the_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert "nvidia-ml-py is missing" in only(doctor.check_cuda).text


def test_programs_that_are_not_there_are_notes(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setenv("PATH", str(workspace))
    browser, compiler = doctor.check_programs()
    assert (browser.level, compiler.level) == ("note", "note")
    assert "the tests in a browser are skipped" in browser.text
    assert "training on a CPU is slower" in compiler.text


def test_outside_a_workspace_every_check_says_so_without_failing() -> None:
    levels = {check.__name__: {finding.level for finding in check()} for check in doctor.CHECKS}
    assert all(levels.values())
    for name in ("check_packages", "check_params", "check_git", "check_dvc"):
        assert levels[name] == {"problem"}
