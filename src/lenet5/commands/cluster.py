"""Ray on several machines, started safely: `lenet5 seeds` and `lenet5 sweep` run on it with --on.

Every machine runs these commands in a clone of the project of its own, with the environment installed.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import joblib
import psutil

from lenet5.errors import UserError
from lenet5.search import ray_settings

_STORE_BYTES = 100_000_000  # rows are small; Ray itself would take a third of the memory
_START_SECONDS = 180
_END_SECONDS = 16.0  # Ray's own measure
_FIREWALL = 600


def head(host: str | None, port: int, cpus: int | None) -> int:
    """Start a cluster that others join at ``host``:``port``."""
    ray_settings.require_ray()
    if not 0 < port <= ray_settings.LARGEST_PORT - _FIREWALL:
        last = ray_settings.LARGEST_PORT - _FIREWALL
        raise UserError(f"--port {port}: from 1 to {last}, as it takes those up to {_FIREWALL} above it")
    ray_settings.make_token()
    ray_settings.require_token()
    address = host or _address_outwards()
    _refuse_taken(port)
    _start(["--head", f"--port={port}", "--include-dashboard=false"], address, port, cpus, f"{address}:{port}")
    print(f"a cluster at {address}:{port} (ports {port} to {port + _FIREWALL})")
    print(f"the token is in {ray_settings.token_file()}; others need the same file, with mode 600")
    print(f"join:  lenet5 cluster join {address}:{port}")
    print(f"use:   lenet5 seeds --count 8 --on {address}:{port}")
    print("stop:  lenet5 cluster stop")
    return 0


def join(address: str, cpus: int | None) -> int:
    """Let this machine take jobs of the cluster at ``address``, HOST or HOST:PORT."""
    ray_settings.require_ray()
    ray_settings.require_token()
    try:
        host, port = ray_settings.host_and_port(address)
        own = ray_settings.own_address(host, port)
    except OSError as error:
        raise UserError(f"{address}: {ray_settings.nobody_there(error)}") from None
    _start([f"--address={host}:{port}"], own, port, cpus, address)
    print(f"{own} is part of the cluster at {host}:{port}")
    print("stop:  lenet5 cluster stop")
    return 0


def stop() -> int:
    """End what was started from this workspace; the cluster goes on elsewhere, unless this is the head.

    `ray stop` would end whatever Ray this machine has, another project's too.
    """
    started = _started_from(Path.cwd())
    family = [*started, *(one for process in started for one in _descendants(process))]
    # First, while there is somebody whom they can tell that they leave.
    _end([process for process in started if process.info["name"] == "raylet"])
    _end(family)
    print("what was started from here has ended" if started else f"no Ray was started from {Path.cwd()}")
    return 0


def _start(how: Sequence[str], own: str, port: int, cpus: int | None, address: str) -> None:
    """Start Ray's processes, on ports that a firewall can be told. Raises UserError where they do not come up."""
    fixed = {"node-manager": port + 1, "object-manager": port + 2, "runtime-env-agent": port + 3}
    options = [
        *how,
        f"--node-ip-address={own}",
        f"--num-cpus={joblib.cpu_count() if cpus is None else cpus}",
        f"--object-store-memory={_STORE_BYTES}",
        *(f"--{name}-port={number}" for name, number in fixed.items()),
        f"--min-worker-port={port + 10}",
        f"--max-worker-port={port + _FIREWALL}",
        "--disable-usage-stats",
    ]
    done = _ray_start(options)
    if done.returncode:
        raise UserError(f"{address}: {ray_settings.advice(done.stdout, address)}")


def _ray_start(options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    settings = ray_settings.environment() | ray_settings.server_environment(os.environ)
    environment = os.environ | settings | {ray_settings.WORKSPACE: str(Path.cwd())}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    try:
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, timeout=_START_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"Ray has not started in {_START_SECONDS} s; `lenet5 cluster stop`, then again") from None


def _started_from(workspace: Path) -> list[psutil.Process]:
    """Ray's processes that were started from there, but for workers: they write their title over their environment."""
    return [
        process
        for process in psutil.process_iter(["name", "environ"])
        if (process.info["environ"] or {}).get(ray_settings.WORKSPACE) == str(workspace)
    ]


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=_END_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_END_SECONDS)


def _address_outwards() -> str:
    """The address of this machine on the way to others. No packet is sent. Raises UserError where there is none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # reserved for examples
            address: str = probe.getsockname()[0]
            return address
    except OSError:
        raise UserError("this machine has no way to others; --host ADDRESS says how they reach it") from None


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            remedy = "`lenet5 cluster stop` ends what was started from here, or take another port"
            raise UserError(f"--port {port}: {error.strerror}; {remedy}") from None
