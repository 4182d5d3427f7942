import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lenet5.commands import sweep
from lenet5.commands.confirmation import confirm
from lenet5.errors import UserError
from lenet5.record.family import Family
from lenet5.search.engine import Event, Job
from lenet5.training import device
from lenet5.training.engine import EngineChoice
from tests.params import CONTENT
from tests.unit.search.test_driver import Stage, trained

FILE = Path("sweeps/tiny.yaml")
PLAN = {
    "trials": 1, "workers": 1, "objective": "validation_loss", "prune": False, "fixed": {"train.epochs": 1},
    "space": {"train.lr": [0.05]},
}  # fmt: skip


class Cluster(Stage):
    """One that is made as the real one is, and knows with what, and whether it was closed."""

    def __init__(self, work: Any, address: str, gpus: float) -> None:
        super().__init__(plays)
        self.work, self.asked, self.closed = work, (address, gpus), False

    def close(self) -> None:
        self.closed = True


def plays(job: Job) -> list[Event]:
    return trained(job, [job.params["train"]["lr"] + 0.01 * job.params["train"]["seed"]])


class Store:
    """What MLflow would have got; nothing while it is away."""

    def __init__(self) -> None:
        self.away, self.families = False, list[Family]()

    def send(self, told: Family, arrived: Callable[[], None]) -> None:
        if self.away:
            raise OSError("the server is away")
        self.families.append(told)
        arrived()


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(sweep, "_runs", lambda *_: store)
    return store


@pytest.fixture
def clusters(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    """The clusters that commands have connected to, from a workspace whose device is left open, with a card here."""
    (workspace / "params.yaml").write_text(yaml.safe_dump(CONTENT | {"train": CONTENT["train"] | {"device": "auto"}}))
    (workspace / "dvc.yaml").write_text("stages: {train: {deps: []}}")
    (workspace / "sweeps").mkdir()
    write(PLAN)
    monkeypatch.setattr(device, "obstacle", lambda: None)
    made: list[Cluster] = []

    def connect(work: Any, address: str, gpus: float, _: object) -> Cluster:
        if address == "nowhere":
            raise UserError("nowhere: nobody answers")
        made.append(Cluster(work, address, gpus))
        return made[-1]

    monkeypatch.setattr(sweep, "ClusterEngine", connect)
    return made


def write(plan: dict[str, Any]) -> None:
    FILE.write_text(yaml.safe_dump(plan))


def test_a_cluster_that_is_not_there_begins_no_sweep(clusters: list[Cluster]) -> None:
    with pytest.raises(UserError, match="nobody answers"):
        sweep.run(FILE, "nowhere", 0)
    with pytest.raises(UserError, match="there is none yet"):
        sweep.show("tiny")
    write(PLAN | {"fixed": {"train.epochs": 2}})  # so it may still be changed
    sweep.run(FILE, "host", 0)
    assert len(clusters) == 1


def test_a_sweep_that_began_otherwise_leaves_no_engine_running(clusters: list[Cluster]) -> None:
    sweep.run(FILE, "host", 0)
    write(PLAN | {"fixed": {"train.epochs": 2}})
    with pytest.raises(UserError, match=r"began otherwise: train\.epochs was 1, is 2"):
        sweep.run(FILE, "host", 0)
    assert (clusters[1].started, clusters[1].closed) == ([], True)


def test_processors_of_a_cluster_train_as_this_machines_do_and_the_record_says_so(
    clusters: list[Cluster], store: Store
) -> None:
    sweep.run(FILE, "host", 0)
    confirm("tiny", 1, 2, "host", 0)
    assert [cluster.work.args[1] for cluster in clusters] == ["eager", "eager"]
    assert [job.params["train"]["device"] for cluster in clusters for job in cluster.started] == ["cpu"] * 6
    for told in store.families[0], store.families[-1]:
        assert [child.params["train.device"] for child in told.children] == ["cpu"]
        assert told.parent.params["train.device"] == "cpu"


@pytest.mark.usefixtures("clusters")
def test_a_sweep_that_is_interrupted_over_its_pictures_is_not_left_running(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweep.Study, "pictures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(FILE, "host", 0)
    assert store.families[-1].parent.status == "KILLED"
    sweep.run(FILE, "host", 0)
    assert store.families[-1].parent.status == "FINISHED"


@pytest.mark.usefixtures("clusters")
def test_a_disk_that_is_full_leaves_no_sweep_running_and_hides_no_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def damaged(*_: object) -> None:
        raise UserError("the reason")

    monkeypatch.setattr(sweep, "write_files", full)
    monkeypatch.setattr(sweep.Driver, "step", damaged)
    with pytest.raises(UserError, match="the reason"):
        sweep.run(FILE, "host", 0)
    assert store.families[-1].parent.status == "KILLED"


def test_current_params_that_train_otherwise_than_the_trials_train_as_they_would_alone(
    workspace: Path, clusters: list[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {"fp32": EngineChoice("lanes", False, ""), "bf16": EngineChoice("eager", False, "")}
    monkeypatch.setattr(sweep, "choose_engine", lambda _, train, *__: choices[train.precision])
    train = CONTENT["train"] | {"device": "auto", "precision": "bf16"}
    (workspace / "params.yaml").write_text(yaml.safe_dump(CONTENT | {"train": train}))
    write(PLAN | {"fixed": {"train.epochs": 1, "train.precision": "fp32"}})
    sweep.run(FILE, "host", 0)
    confirm("tiny", 1, 2, "host", 0)
    assert [cluster.work.args[1] for cluster in clusters] == ["lanes", None]


@pytest.mark.parametrize(("gpus", "options"), [(0, "--on host:6379"), (0.5, "--on host:6379 --gpus-per-trial 0.5")])
@pytest.mark.usefixtures("clusters")
def test_the_command_that_sends_the_rest_is_the_one_that_was_given(
    store: Store, capsys: pytest.CaptureFixture[str], gpus: float, options: str
) -> None:
    store.away = True
    sweep.run(FILE, "host:6379", gpus)
    assert f"`lenet5 sweep run sweeps/tiny.yaml {options}` sends the rest" in capsys.readouterr().err
    confirm("tiny", 1, 2, "host:6379", gpus)
    assert f"`lenet5 sweep confirm tiny --top 1 --seeds 2 {options}` sends the rest" in capsys.readouterr().err
