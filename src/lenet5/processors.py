"""How many processors this process may use, and how the threads of PyTorch wait for each other on them."""

import os
import re
from collections.abc import MutableMapping

SPINS = 600
"""Turns that a thread of libgomp waits for the others before it sleeps; its own choice is so long that a training
beside another program hardly moves. `python bench/waiting.py` measures what this costs and gives: on the lanes little,
and on PyTorch's own operations no choice is best on every processor."""

SLOWED = "other programs slow this one down"
CROWD = 1.5
"""So many threads to a processor are more than this process and what a system does beside it."""

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_politely(environment: MutableMapping[str, str]) -> None:
    """Set how threads wait, before PyTorch is imported; what a person has set about it stays.

    For Linux. On macOS and Windows PyTorch brings LLVM's or Intel's OpenMP, which do not read this variable: their
    threads sleep after 0.2 s (KMP_BLOCKTIME).
    """
    if not any(environment.get(name) for name in _WAITING):
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def use_own_share(processes: int = 1) -> None:
    """Let PyTorch use the processors that this process may use, and OMP_NUM_THREADS where that is a number.

    Where ``processes`` like this one share them, each takes its part.

    PyTorch respects affinity, and overlooks the quota of a container (`docker run --cpus`, Kubernetes).
    """
    import joblib
    import torch

    asked = re.match(r"\s*0*[1-9]\d*\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    if not asked:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), joblib.cpu_count()) // processes))


def busy() -> str:
    """How many threads want a processor, for a person; nothing where they are not many more, or nobody tells."""
    processors = os.cpu_count() or 1
    try:
        wanting = os.getloadavg()[0]  # on average over a minute
    except (AttributeError, OSError):  # Windows
        return ""
    return f"{wanting:.1f} threads want {processors} processors" if wanting > CROWD * processors else ""
