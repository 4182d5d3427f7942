"""Several machines that train together: real Ray between namespaces, whose processes, cables and power are cut."""

import importlib.util
import json
import platform
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lenet5.data.fashion_mnist import RAW_DIR, SHA256, is_verified

from .conftest import TRACEBACK, Project, new_project, wait_until
from .machines import Machine, machine, network, require_machines, strangers
from .test_sweep import PLAN as TINY_PLAN

pytestmark = pytest.mark.soak

PORT = 6379
NOTICED_WITHIN = 90
"""Seconds until a machine without power is given up."""


@dataclass
class Site:
    """A network, and the machines that are on it."""

    switch: int
    stack: ExitStack
    folder: Path
    source: Project
    machines: list[Machine] = field(default_factory=list)

    def add(self) -> Machine:
        """A machine with a clone of the project, and no data in it."""
        number = len(self.machines) + 1
        clone = self.source.clone(self.folder / f"project-{number}")
        home = self.folder / f"home-{number}"
        self.machines.append(self.stack.enter_context(machine(self.switch, number, clone, home)))
        return self.machines[-1]

    def joined(self, cpus: int = 1) -> Machine:
        """A machine that takes jobs."""
        added = self.add()
        self.give_token(added)
        added.run("lenet5", "cluster", "join", self.head.address, "--cpus", str(cpus))
        return added

    def lead(self, cpus: int) -> None:
        """Start the cluster, at the first machine."""
        self.head.run("lenet5", "cluster", "head", "--host", self.head.address, "--cpus", str(cpus))

    def give_token(self, to: Machine) -> None:
        token = Path(to.project.env["HOME"], ".ray/auth_token")
        token.parent.mkdir(exist_ok=True)
        shutil.copy2(Path(self.head.project.env["HOME"], ".ray/auth_token"), token)

    @property
    def head(self) -> Machine:
        return self.machines[0]

    @property
    def on(self) -> str:
        return f"{self.head.address}:{PORT}"


@pytest.fixture
def site(tmp_path: Path, data: Path) -> Iterator[Site]:
    """A cluster of one machine."""
    require_machines()
    source = new_project(tmp_path / "source", data)
    source.shrink({"train.epochs": 20, "train.seed": 1})
    source.commit()
    with ExitStack() as stack:
        one = Site(stack.enter_context(network()), stack, tmp_path, source)
        head = one.add()
        head.project.link_data()
        one.lead(cpus=1)
        yield one


class Seeds:
    """`lenet5 seeds` under way on a cluster, and what it has said so far."""

    def __init__(self, site: Site, count: int, at: Machine | None = None) -> None:
        self.at, self.on, self.count, self.lines = at or site.head, site.on, count, list[str]()

    @contextmanager
    def started(self) -> Iterator["Seeds"]:
        words = self.at.words("lenet5", "seeds", "--count", str(self.count), "--on", self.on)
        with self.at.project.started(*words) as self.process:
            self.reader = threading.Thread(target=self._read, daemon=True)
            self.reader.start()
            yield self

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def finished(self) -> list[str]:
        return [line for line in self.lines if re.match(r"seed \d+: \d+ epochs", line)]

    def wait(self, condition: Callable[[], Any]) -> None:
        wait_until(lambda: condition() or not self.reader.is_alive())
        assert condition(), "".join(self.lines)

    def status(self) -> int:
        """Let it go on to its end."""
        self.reader.join()
        return self.process.wait()

    def end(self) -> str:
        """Let it go on to its end, without an error; what it said."""
        assert self.status() == 0, "".join(self.lines)
        assert any(line.startswith("MLflow run") for line in self.lines)
        told = "".join(self.lines)
        assert TRACEBACK not in told
        assert len(self.finished()) == self.count
        return told


def trained(project: Project) -> dict[int, Any]:
    """What every seed gave, digit for digit."""
    (journal,) = (project.path / ".lenet5/seeds").glob("*.jsonl")
    return {one["seed"]: one for one in map(json.loads, filter(None, journal.read_text().splitlines()))}


def took_a_job(one: Machine) -> bool:
    """Whether a machine that had no data has all of it, verified."""
    return all(is_verified(one.project.path / RAW_DIR / name) for name in SHA256)


def workers(one: Machine) -> list[int]:
    return one.pids("ray::_serve")


def test_a_killed_worker_and_a_machine_that_joins_change_no_bit_and_nothing_leaves_the_network(site: Site) -> None:
    with strangers(site.switch) as seen:
        site.head.run("lenet5", "cluster", "stop")
        site.lead(cpus=1)  # once more: Ray would report that a cluster has been started
        second = site.joined()
        old = second.project.path / "src/lenet5/search/seeds.py"
        old.write_text("raise ImportError('code of another day: the driver has what counts')")
        with Seeds(site, 6).started() as seeds:
            seeds.wait(lambda: workers(second))
            worker = str(workers(second)[0])
            assert second.run("ps", "-o", "ni=", "-p", worker).stdout.strip() == "0"
            second.run("kill", "-9", worker)
            seeds.wait(lambda: any("it starts again" in line for line in seeds.lines))
            third = site.joined()
            told = seeds.end()
    assert re.search(r"seed \d: its process ended \(on 10\.77\.0\.2\); it starts again", told)
    assert took_a_job(second)
    assert took_a_job(third)
    assert seen == []

    alone = site.source.clone(site.folder / "alone")
    alone.link_data()
    alone.run("lenet5", "seeds", "--count", "6")
    assert trained(site.head.project) == trained(alone)


def test_a_machine_whose_processes_are_all_killed_costs_its_own_seeds_alone(site: Site) -> None:
    second = site.joined()
    with Seeds(site, 3).started() as seeds:
        seeds.wait(lambda: took_a_job(second) and workers(second))
        second.power_off()
        told = seeds.end()
    assert re.search(r"seed \d: .*; it starts again", told)


def test_a_cable_that_is_out_for_ten_seconds_costs_nothing(site: Site) -> None:
    second = site.joined()
    with Seeds(site, 4).started() as seeds:
        seeds.wait(lambda: took_a_job(second) and workers(second))
        second.link("down")
        time.sleep(10)
        second.link("up")
        told = seeds.end()
    assert "it starts again" not in told


def test_a_machine_that_lost_its_power_is_noticed_in_time(site: Site) -> None:
    second = site.joined()
    with Seeds(site, 3).started() as seeds:
        seeds.wait(lambda: took_a_job(second) and workers(second))
        second.link("down")
        cut = time.monotonic()
        seeds.wait(lambda: any("its machine is gone; it starts again" in line for line in seeds.lines))
        took = time.monotonic() - cut
        seeds.end()
    assert took < NOTICED_WITHIN, took


def test_a_head_that_is_gone_ends_the_driver_and_the_next_cluster_goes_on(site: Site) -> None:
    driver = site.joined()
    driver.project.link_data()
    with Seeds(site, 4, at=driver).started() as seeds:
        seeds.wait(seeds.finished)
        site.head.power_off()
        gone = time.monotonic()
        assert seeds.status() == 1, "".join(seeds.lines)
    assert time.monotonic() - gone < 240
    assert seeds.lines[-1].startswith(f"lenet5 seeds: --on {site.on}: no cluster answers there")
    wait_until(lambda: not workers(driver), 60)
    driver.run("lenet5", "cluster", "stop")
    driver.run("lenet5", "cluster", "head", "--host", driver.address, "--cpus", "1")
    again = driver.run("lenet5", "seeds", "--count", "4", "--on", f"{driver.address}:{PORT}").stdout
    assert set(seeds.finished()) <= set(again.splitlines(keepends=True))
    assert sorted(trained(driver.project)) == [1, 2, 3, 4]


PLAN = TINY_PLAN | {"trials": 4}


def sweep(project: Project, run: Callable[..., Any], *on: str) -> dict[str, Any]:
    """The params and the validation loss of every trial of a sweep, as its record has them."""
    (project.path / "sweeps/tiny.yaml").write_text(yaml.safe_dump(PLAN))
    run("lenet5", "sweep", "run", "sweeps/tiny.yaml", *on)
    trials = [one.data for one in project.runs() if "trial" in one.data.tags]
    return {one.tags["trial"]: (one.params, one.metrics["validation_loss"]) for one in trials}


def test_a_sweep_on_two_machines_has_the_trials_of_one(site: Site) -> None:
    second = site.joined()
    together = sweep(site.head.project, site.head.run, "--on", site.on)
    assert took_a_job(second)
    alone = site.source.clone(site.folder / "alone")
    alone.link_data()
    assert together == sweep(alone, alone.run)
    assert len(together) == PLAN["trials"]


def test_a_driver_that_is_killed_leaves_no_worker_and_the_same_command_goes_on(site: Site) -> None:
    second, project = site.joined(), site.head.project
    (project.path / "sweeps/tiny.yaml").write_text(yaml.safe_dump(PLAN))
    command = ("lenet5", "sweep", "run", "sweeps/tiny.yaml", "--on", site.on)
    journal = project.path / ".lenet5/sweeps/tiny.journal"
    with project.started(*site.head.words(*command)) as driver:
        wait_until(lambda: journal.exists() and '"row 1"' in journal.read_text())
        site.head.run("pkill", "-KILL", "--full", "lenet5 sweep run")
        driver.communicate()
    wait_until(lambda: not workers(site.head) and not workers(second), 60)
    assert "sweep tiny goes on" in site.head.run(*command).stdout
    trials = [one for one in project.runs() if "trial" in one.data.tags]
    assert [one.info.status for one in trials] == ["FINISHED"] * PLAN["trials"]
    assert {tuple(project.steps(one, "loss/validation")) for one in trials} == {(1, 2)}


def refused(one: Machine, *command: str, **env: str) -> str:
    """The one line of a command that could not be done."""
    done = one.run(*command, check=False, **env)
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_who_is_no_part_of_the_cluster_is_told_so_in_a_line(site: Site) -> None:
    stranger = site.add()
    stranger.project.link_data()
    join = ("lenet5", "cluster", "join", site.on)
    seeds = ("lenet5", "seeds", "--count", "2", "--on", site.on)
    token = Path(stranger.project.env["HOME"], ".ray/auth_token")
    assert "no token here; copy that of the cluster's head" in refused(stranger, *join)
    site.give_token(stranger)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert f"this machine is not part of it; run `lenet5 cluster join {site.on}` first" in refused(stranger, *seeds)
    token.chmod(0o644)
    assert "others can read the token; chmod 600" in refused(stranger, *seeds)
    token.chmod(0o600)
    token.write_text("0" * 64)
    assert "the token is not the cluster's" in refused(stranger, *join)
    assert "the token is not the cluster's" in refused(stranger, *seeds)
    assert "no cluster answers there" in refused(stranger, "lenet5", "cluster", "join", "10.77.0.1:7001")
    assert "no cluster answers there" in refused(stranger, *seeds[:-1], "10.77.0.99:6379")
    assert "--port 6379" in refused(site.head, "lenet5", "cluster", "head", "--host", site.head.address)


def another(one: Machine, module: str, old: str, new: str) -> None:
    """Let a module of the environment hold ``new`` for ``old``, on this machine alone."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    assert old in text
    changed = one.project.path.with_name(f"{one.number}-{module}.py")
    changed.write_text(text.replace(old, new))
    one.project.env["PYTHONDONTWRITEBYTECODE"] = "1"  # it would land beside the module, where all have it
    one.run("mount", "--bind", str(changed), spec.origin)


def test_another_ray_or_python_is_refused_and_named(site: Site) -> None:
    join, ray, here = ("lenet5", "cluster", "join", site.on), version("ray"), platform.python_version()
    theirs = f"it runs Ray {ray} on Python {here}, and here is"
    older, newer = site.add(), site.add()
    for one in (older, newer):
        site.give_token(one)
    another(older, "ray._version", f'"{ray}"', '"2.1.0"')
    assert f"{theirs} Ray 2.1.0 on Python {here}; install the same on both" in refused(older, *join)
    another(newer, "ray._private.utils", "map(str, sys.version_info[:3])", "['3', '99', '0']")
    assert f"{theirs} Ray {ray} on Python 3.99.0; install the same on both" in refused(newer, *join)
    another(site.head, "ray._version", f'"{ray}"', '"2.1.0"')  # the driver's, on a machine of the cluster
    assert f"{theirs} Ray 2.1.0" in refused(site.head, "lenet5", "seeds", "--count", "2", "--on", site.on)


def test_a_machine_that_cannot_take_jobs_is_told_why_and_loses_no_job(site: Site) -> None:
    site.head.run("lenet5", "cluster", "stop")
    site.lead(cpus=0)
    other, bare, without, full, broken = (site.add() for _ in range(5))
    another(other, "torch.version", "__version__ = '", "__version__ = '1.")
    without.project.env["FASHION_MNIST_DIR"] = "/nowhere"  # and nobody can be reached from here
    (full.project.path / "data").mkdir()
    full.run("mount", "-t", "tmpfs", "-o", "size=10m", "small", str(full.project.path / "data"))
    for one in (other, bare, without, full, broken):
        site.give_token(one)
        one.run("lenet5", "cluster", "join", site.on, "--cpus", "1")
    nothing = site.folder / "nothing"
    nothing.mkdir()
    bare.run("mount", "--bind", str(nothing), str(Path(torch.__file__).parent))
    broken.run("mount", "-o", "remount,size=1m", "/tmp/ray")  # noqa: S108 - where Ray writes
    broken.run("sh", "-c", "head -c 9m /dev/zero >/tmp/ray/all-there-is", check=False)

    done = site.head.run("lenet5", "seeds", "--count", "2", "--on", site.on, check=False)
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    for told in (
        f"machine-2 has PyTorch 1.{torch.__version__}, and the driver {torch.__version__}; install the same",
        f"{bare.address}: its environment cannot run jobs",
        "machine-4 has no data: no source gave",
        f"machine-5 cannot keep the data in {full.project.path}: No space left on device; see to that there",
        f"{broken.address}: 3 workers ended before they had begun; look there for room in /tmp/ray",
    ):
        assert told in line
    assert all(re.match(r"seed \d: .*; it starts again$", one) for one in done.stdout.splitlines()), done.stdout


def test_it_listens_on_the_ports_it_was_told_and_stops(site: Site) -> None:
    second = site.joined()
    for one in (site.head, second):
        ports = [int(line.split()[3].rpartition(":")[2]) for line in one.run("ss", "-Hltn").stdout.splitlines()]
        assert ports
        assert all(PORT <= port <= PORT + 600 for port in ports), ports
    second.run("bash", "-c", "exec -a raylet sleep 600 >/dev/null 2>&1 &")
    second.run("lenet5", "cluster", "stop")
    assert second.run("ss", "-Hltn").stdout == ""
    (stranger,) = second.pids("raylet")
    second.run("kill", str(stranger))
    left = [line for line in second.run("ps", "-eo", "args").stdout.splitlines() if "<defunct>" not in line]
    assert not any("ray" in line for line in left), left


def test_a_machine_that_lost_its_power_is_no_trials_fault(site: Site, tmp_path: Path) -> None:
    (site.head.project.path / "sweeps/tiny.yaml").write_text(yaml.safe_dump(PLAN))
    second = site.joined()
    words = site.head.words("lenet5", "sweep", "run", "sweeps/tiny.yaml", "--on", site.on)
    log = tmp_path / "log"
    with log.open("w") as output, site.head.project.started(*words, output=output) as driver:
        wait_until(lambda: workers(second) or driver.poll() is not None)
        second.power_off()
        assert driver.wait() == 0, log.read_text()
    told = log.read_text()
    assert "; it starts again" in told
    assert told.count("; it starts again") < 20, told
    assert f"{PLAN['trials']} complete, of {PLAN['trials']} trials" in told, told
