"""How Ray is started and reached safely: with a token, without reports to its makers, at the right address."""

import json
import os
import re
import secrets
import socket
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from pathlib import Path

from lenet5.errors import UserError

PORT, LARGEST_PORT = 6379, 65535
WORKSPACE = "LENET5_WORKSPACE"
"""Tells the workers of a machine where its project is."""

_NOWHERE = "http://127.0.0.1:9/"  # the port of `discard`: Ray reports once even when told not to
_ANSWER_SECONDS = 5.0
_SMALLEST_SHARE = 0.0001  # of a card: in such parts Ray counts them
_KEPT = "LENET5_PROXIES"
_NICENESS = "RAY_worker_niceness"
_PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]
_PROXIES += [name.upper() for name in _PROXIES]

_ADVICE = {
    "InvalidAuthToken|AuthenticationError|Unauthenticated": (
        "the token is not the cluster's; copy the head's {token} here, with mode 600"
    ),
    "Version mismatch|version mismatch": ("it runs {theirs}, and here is {ours}; install the same on both"),
    "No node info found matching|expects this IP address|matching raylet": (
        "this machine is not part of it; run `lenet5 cluster join {address}` first (--cpus 0: without taking jobs)"
    ),
    "timed out during startup": (
        "this machine was too busy for Ray to start in time; `lenet5 cluster stop` here, then the same again"
    ),
    "Failed to connect to GCS|TimedOut|Unavailable|Connection refused": "it does not answer; is it still up?",
}


def require_ray() -> None:
    """Raises UserError where Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError(
            "Ray is not installed; python -m pip install --no-deps --require-hashes --requirement "
            "requirements-cluster.lock"
        )


def refuse_share(gpus: float, on: str | None) -> None:
    """Raises UserError for a share of a card that cannot be had on the cluster ``on``, or on this machine."""
    if gpus != 0 and not _SMALLEST_SHARE <= gpus <= 1:
        raise UserError(f"--gpus-per-trial {gpus:g}: a share of one card, from {_SMALLEST_SHARE:g} to 1, or 0 for none")
    if gpus and not on:
        raise UserError("--gpus-per-trial: for a cluster (--on); here a card is used where train.device lets it")


def token_file() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")


def make_token() -> None:
    """Write a token that nobody else can read, where there is none."""
    path = token_file()
    if os.environ.get("RAY_AUTH_TOKEN") or path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))


def require_token() -> None:
    """Raises UserError where there is no token, or others can read it."""
    path = token_file()
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    if not path.is_file():
        raise UserError(f"{path}: no token here; copy that of the cluster's head, with mode 600")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UserError(f"{path}: others can read the token; chmod 600 {path}")


def environment() -> dict[str, str]:
    """The variables that every process of Ray needs, a driver too."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": _NOWHERE,
    }


def server_environment(own: Mapping[str, str]) -> dict[str, str]:
    """What Ray's own processes need besides: no way out, and workers that take their fair part of a processor.

    Among others they ask the usual clouds whether it is them. What is set in ``own`` about proxies is kept for the
    workers, which may have to fetch data; what is set about their niceness stays. At Ray's own, 15, they would get a
    thirtieth of a processor that others use.
    """
    kept = {name: own[name] for name in _PROXIES if name in own}
    settings = {"no_proxy": "", "NO_PROXY": "", _KEPT: json.dumps(kept), _NICENESS: own.get(_NICENESS, "0")}
    return dict.fromkeys(_PROXIES, _NOWHERE) | settings


def reach_out_again(environment: MutableMapping[str, str]) -> None:
    """Undo ``server_environment`` in a worker's own ``environment``."""
    if _KEPT in environment:
        kept = json.loads(environment.pop(_KEPT))
        for name in _PROXIES:
            environment.pop(name, None)
        environment.update(kept)


def host_and_port(address: str) -> tuple[str, int]:
    """HOST or HOST:PORT as an IP address and a port. Raises UserError, or OSError for a name that nobody knows."""
    host, _, port = address.partition(":")
    port = port or str(PORT)
    try:
        if host and port.isascii() and port.isdigit() and 0 < int(port) <= LARGEST_PORT:
            return socket.gethostbyname(host), int(port)
    except UnicodeError:  # a label that is empty, or too long for a name
        pass
    raise UserError(f"{address}: not HOST:PORT")


def own_address(host: str, port: int) -> str:
    """The address of this machine from which it reaches ``host``. Raises OSError where nothing answers there."""
    with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
        address: str = connection.getsockname()[0]
        return address


def nobody_there(error: OSError) -> str:
    """What ``error`` of a connection means."""
    return f"no cluster answers there ({error}); `lenet5 cluster head` on that machine starts one"


def advice(said: str, address: str) -> str:
    """What Ray ``said`` about the cluster at ``address``, and what to do, in a line."""
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", said)
    theirs, ours = ([f"Ray {ray} on Python {python}" for ray, python in versions] + ["another Ray or Python"] * 2)[:2]
    for signs, text in _ADVICE.items():
        if re.search(signs, said):
            return text.format(token=token_file(), address=address, theirs=theirs, ours=ours)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "Ray does not say why"
