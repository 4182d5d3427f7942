"""Machines of one network on this one, made of Linux namespaces: each has its address, its processes and its name."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Project

NETWORK = "10.77.0."

# Sees every packet that machines send to each other or to anybody else; prints the receivers that are no machine.
WATCH = f"""
import socket, sys
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
print("watching", flush=True)
while True:
    receiver = socket.inet_ntoa(packets.recv(65535)[30:34])
    if not receiver.startswith({NETWORK!r}):
        print(receiver, flush=True)
"""


def require_machines() -> None:
    """Skip where machines cannot be made, or nothing is there that connects them."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; `make cluster` installs it")
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("namespaces are made by root on Linux")
    for command in ("ip", "unshare", "nsenter"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed; `apt-get install iproute2 util-linux` on Debian")
    if subprocess.run(["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "true"], check=False).returncode:
        pytest.skip("this kernel, or a container, does not let root make namespaces")


class Machine:
    """One machine, and a clone of the project on it. ``process`` is its first process: the others end with it."""

    def __init__(self, process: int, switch: int, number: int, project: Project) -> None:
        self.process, self.switch, self.number, self.project = process, switch, number, project
        self.address = f"{NETWORK}{number}"

    def words(self, *command: str) -> list[str]:
        """``command`` as it is given on this machine."""
        folder = str(self.project.path)
        spaces = ["--net", "--mount", "--pid", "--uts", f"--wd={folder}"]
        return ["nsenter", f"--target={self.process}", *spaces, "--", *command]

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        return self.project.run(*self.words(*command), check=check, **env)

    def pids(self, name: str) -> list[int]:
        """The processes here whose title or command begins with ``name``, as this machine numbers them."""
        listed = self.run("ps", "-eo", "pid,args").stdout.splitlines()[1:]
        return [int(line.split()[0]) for line in listed if line.split(maxsplit=1)[1].startswith(name)]

    def power_off(self) -> None:
        """End every process at once; the address answers no more."""
        os.kill(self.process, signal.SIGKILL)

    def link(self, state: str) -> None:
        """Take the cable out (``down``), or put it in (``up``)."""
        _ip(self.switch, f"link set port{self.number} {state}")


@contextmanager
def network() -> Iterator[int]:
    """A switch, by its process."""
    with _spaces("--net", ":") as switch:
        _ip(switch, "link add wire type bridge")
        _ip(switch, f"address add {NETWORK}254/24 dev wire")
        _ip(switch, "link set wire up")
        yield switch


@contextmanager
def machine(switch: int, number: int, project: Project, home: Path) -> Iterator[Machine]:
    """Machine ``number`` of the network, with its cable in and a way out of the network through the switch."""
    home.mkdir(exist_ok=True)
    project.env |= {"HOME": str(home)}
    project.env.pop("RAY_AUTH_TOKEN", None)
    own_places = (
        f"hostname machine-{number}; mkdir -p /tmp/ray; mount -t tmpfs ray /tmp/ray; mount -t tmpfs shm /dev/shm"
    )
    with _spaces("--net --pid --mount --uts --mount-proc", own_places) as process:
        _ip(switch, f"link add port{number} type veth peer name eth0 netns {process}")
        _ip(switch, f"link set port{number} master wire up")
        for words in ("link set lo up", f"address add {NETWORK}{number}/24 dev eth0", "link set eth0 up",
                      f"route add default via {NETWORK}254"):  # fmt: skip
            _ip(process, words)
        yield Machine(process, switch, number, project)


@contextmanager
def strangers(switch: int) -> Iterator[list[str]]:
    """At the end, the receivers outside the network of anything that was sent in the block."""
    command = ["nsenter", f"--target={switch}", "--net", sys.executable, "-c", WATCH]
    seen: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "watching\n"
        try:
            yield seen
            time.sleep(1)
        finally:
            watch.kill()
            seen.extend(watch.stdout.read().split())


@contextmanager
def _spaces(kinds: str, first: str) -> Iterator[int]:
    """Namespaces of ``kinds`` of their own, by the process that keeps them."""
    command = [
        "unshare",
        *kinds.split(),
        "--fork",
        "--kill-child",
        "sh",
        "-ec",
        f"{first}; echo ready; exec sleep 3600",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == "ready\n"
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        try:
            yield int(children[0])
        finally:
            outer.kill()


def _ip(process: int, words: str) -> None:
    subprocess.run(["nsenter", f"--target={process}", "--net", "ip", *words.split()], check=True)
