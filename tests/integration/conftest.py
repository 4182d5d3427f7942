import functools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

import filelock
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service import utils as mlflow_memory
from playwright.sync_api import Browser, sync_playwright

from lenet5.data.fashion_mnist import RAW_DIR, SHA256, is_verified
from lenet5.params import set_values
from tests.params import CONTENT

from .zygote import Zygote

REPOSITORY = Path(__file__).parents[2]
SCREENSHOTS = REPOSITORY / "tests/output"
FAULT_SEED = int(os.environ.get("FAULT_SEED", time.time()))
TRACEBACK = "Traceback (most recent call last)"

# A small recipe that learns: 20,000 training images, two epochs.
QUICK = {
    "download.sources": ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", "debian"],
    "kernel_check.lr": 0.02,
    "data.validation_size": 40_000,
    "data.train_sample": 10_000,
    "train.epochs": 2,
    "train.batch_size": 100,
    "train.optimizer": "adamw",
    "train.lr": 0.002,
    "train.device": "cpu",  # two workers would compile for a card in every stage
    "train.engine": "auto",
    "register.experiment": "lenet5-fashionmnist",
    "register.model_name": "lenet5-fashionmnist",
}


NOT_A_PERSONS = ("MLFLOW_", "DVC_", "MAKE", "MFLAGS")
"""Variables of whoever runs the tests; with make's, a make that a test starts takes itself for a part of that one."""


class Project:
    """A clone of the repository, as a person has it, and the commands he gives in it."""

    def __init__(self, path: Path, data: Path) -> None:
        self.path = path
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(NOT_A_PERSONS)}
        self.env |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(path / "src"),
            "FASHION_MNIST_DIR": str(data),
            "OMP_NUM_THREADS": "1",  # the tests run on every core already
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        } | {
            f"GIT_{who}_{what}": "a.person@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.path, env=self.env | env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def stage(self, name: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a stage in a fork that has imported what is slow; `dvc repro` starts the real thing."""
        stdout, stderr = (self.path.parent / f"{name}.{end}" for end in ("out", "err"))
        status = zygote().wait(self.start_stage(name, stdout, stderr, **env))
        done = subprocess.CompletedProcess(name, status, stdout.read_text(), stderr.read_text())
        if check and done.returncode:
            raise AssertionError(f"{name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def start_stage(self, name: str, stdout: Path, stderr: Path, **env: str) -> int:
        """The pid of a stage, for `zygote().wait`."""
        for path in {stdout, stderr}:
            path.write_text("")
        return zygote().start(self.path, f"stages/{name}.py", self.env | env, stdout, stderr)

    def wait_for_store(self) -> None:
        """Let training wait for its store as long as a busy machine takes; `register` need not send the rest then."""
        file = self.path / "src/lenet5/record/streaming.py"
        patient, found = re.subn(r"patience: float = .*\)", "patience: float = 120.0)", file.read_text())
        assert found == 1
        file.write_text(patient)

    def repro(self, *arguments: str, check: bool = True, **env: str) -> list[str]:
        """The stages that `dvc repro` really ran."""
        done = self.run("dvc", "repro", *arguments, check=check, **env)
        return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]

    @contextmanager
    def started(
        self, *command: str, output: int | IO[str] = subprocess.PIPE, **env: str
    ) -> Iterator[subprocess.Popen[str]]:
        """A command running in a process group of its own, which is ended with the block."""
        with subprocess.Popen(
            command, cwd=self.path, env=self.env | env, stdout=output, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def params(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load((self.path / "params.yaml").read_text())
        return content

    def edit(self, changes: dict[str, Any]) -> None:
        write_params(self.path, changed(self.params(), changes))

    def shrink(self, changes: dict[str, Any]) -> None:
        """Use 3,000 images of each file: for tests of the order of things, not of their size."""
        self.edit({"data.validation_size": 500, "data.train_sample": 500} | changes)
        datasets = self.path / "src/lenet5/data/datasets.py"
        text = datasets.read_text()
        for offset, size in ((16, "3000 * 784"), (8, "3000")):
            whole = f"np.frombuffer(_read(path), np.uint8, offset={offset})"
            assert whole in text
            text = text.replace(whole, f"{whole}[: {size}]")
        datasets.write_text(text)

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "metrics" / f"{name}.json").read_text())
        return content

    def link_data(self) -> None:
        """Give the project its data without a download, for tests that start at a later stage."""
        folder = self.path / RAW_DIR
        folder.mkdir(parents=True)
        for name in SHA256:
            shutil.copy(Path(self.env["FASHION_MNIST_DIR"]) / name, folder / name)

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")

    def clone(self, path: Path) -> "Project":
        self.run("git", "clone", "--quiet", str(self.path), str(path))
        return Project(path, Path(self.env["FASHION_MNIST_DIR"]))

    def copy(self, path: Path) -> "Project":
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path, Path(self.env["FASHION_MNIST_DIR"]))

    def start_queue(self, workers: int, **env: str) -> None:
        """Start DVC's queue workers; their output is not waited for, one of them may hold it for long."""
        command = ["dvc", "queue", "start", "--jobs", str(workers)]
        subprocess.run(
            command, cwd=self.path, env=self.env | env, check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def queue(self) -> list[str]:
        """The state of each queued experiment, from the table that ends with an empty line."""
        table, _, _ = self.run("dvc", "queue", "status").stdout.partition("\n\n")
        return [line.split()[-1] for line in table.splitlines()[1:]]

    def wait_for_queue(self, count: int) -> None:
        while {"Queued", "Running"} & set(self.queue()):
            time.sleep(5)  # to look costs a second of a processor, which the experiments need
        assert self.queue() == ["Success"] * count

    def mlflow(self, uri: str | None = None) -> MlflowClient:
        return MlflowClient(uri or f"sqlite:///{self.path / 'mlflow.db'}")

    def runs(self, uri: str | None = None) -> list[Run]:
        client = self.mlflow(uri)
        experiment = client.get_experiment_by_name("lenet5-fashionmnist")
        return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])) if experiment else []

    def steps(self, run: Run, key: str, uri: str | None = None) -> list[int]:
        """The steps at which MLflow holds a point of a curve, doubles included."""
        return sorted(metric.step for metric in self.mlflow(uri).get_metric_history(run.info.run_id, key))


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the params in ``content`` with the values of some dotted keys set."""
    content = deepcopy(content)
    set_values(content, changes)
    return content


def write_params(folder: Path, content: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@functools.cache
def zygote() -> Zygote:
    """The fork server of this test process."""
    return Zygote()


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    if zygote.cache_info().currsize and not zygote().idle:
        zygote().kill()
        zygote.cache_clear()  # the next test gets a new one


def pytest_sessionfinish() -> None:
    if zygote.cache_info().currsize:
        zygote().close()


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run that its parallel workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real FashionMNIST: the repository's own where it is right, downloaded by the real stage otherwise."""
    own = REPOSITORY / RAW_DIR
    if all(is_verified(own / name) for name in SHA256):
        return own
    shared = shared_folder(tmp_path_factory) / "fashion-mnist"
    with filelock.FileLock(f"{shared}.lock"):
        shared.mkdir(exist_ok=True)
        write_params(shared, changed(CONTENT, QUICK))
        command = [sys.executable, str(REPOSITORY / "stages/download.py")]
        subprocess.run(command, cwd=shared, check=True)
    return shared / RAW_DIR


# What a person's own work rewrites: it must decide no test, and a lock would let stages be skipped.
OF_A_PERSON = ("dvc.lock", "params.yaml", "metrics/", ".dvc/config")


def new_project(path: Path, data: Path) -> Project:
    """The repository's files in a repository of their own, with params and settings of the tests' own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if not name.startswith(OF_A_PERSON) and (REPOSITORY / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, path / name)
    write_params(path, changed(CONTENT, QUICK))
    (path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    project = Project(path, data)
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.commit()
    return project


@pytest.fixture(autouse=True)
def _nothing_goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """DVC's queue workers outlive the command that starts them, and the test; nothing of a test's folder may."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder:
        end_all_in(folder)


@pytest.fixture(autouse=True)
def _mlflow_forgets() -> None:
    """Copies of one project have the same ids, and a process remembers where the files of an id are."""
    mlflow_memory._artifact_repos_cache.clear()
    mlflow_memory._tracking_uri = None


def end_all_in(folder: Path) -> None:
    """Kill every process that works in ``folder``."""
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(folder):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def project(tmp_path: Path, data: Path) -> Project:
    return new_project(tmp_path / "project", data)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Project:
    """A project whose pipeline has run once; made once for all workers, and only copied."""
    path = shared_folder(tmp_path_factory) / "pristine"
    made = path.with_name("pristine.made")
    with filelock.FileLock(f"{path}.lock"):
        if not made.exists():
            shutil.rmtree(path, ignore_errors=True)  # of a worker whose run failed: half of a project is none
            project = new_project(path, data)
            project.repro()
            project.commit()
            made.touch()
        return Project(path, data)


@pytest.fixture(scope="module")
def finished(pristine: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished project that the tests of one file share."""
    return pristine.copy(tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture
def pipeline_copy(pristine: Project, tmp_path: Path) -> Project:
    """A finished project for one test to change as it likes."""
    return pristine.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def dice() -> random.Random:
    """What decides when a stage is killed, and where a file is damaged."""
    return random.Random(FAULT_SEED)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, which speaks to nobody of its own accord."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed; `apt-get install chromium` on Debian")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=quiet)
        yield started
        started.close()


def in_own_mounts(project: Project, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount what it likes: nobody else sees it."""
    return project.run("unshare", "--map-root-user", "--mount", "sh", "-ec", script, check=False, **env)


@pytest.fixture(scope="session")
def _mounts() -> None:
    probe = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False
    )
    if probe.returncode:
        pytest.skip("this system lets nobody mount in a namespace of his own (unshare, from util-linux)")


def wait_until(condition: Any, seconds: float = math.inf) -> None:
    """Wait for something another process does; what never does it meets the limit that pytest has for a test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def ctrl_c(process: subprocess.Popen[str]) -> tuple[float, str]:
    """Press it; the seconds until the command has ended, and what it said besides."""
    pressed = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate()[0]
    return time.monotonic() - pressed, told


def least_disturbed(measure: Callable[[], float]) -> float:
    """Of three times, in seconds, the one that others on this machine have lengthened least."""
    return min(measure() for _ in range(3))
