"""Epochs that take turns, so that all see the same machine, in processes that let their threads wait as they like."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import torch

from tutorial import Epoch

Turn = Callable[[], float]
"""Runs an epoch, and says how many seconds it took."""


def alternate(turns: Mapping[str, Turn], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each epoch, one loop after the other; the first round is dropped."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for round_ in range(repetitions + 1):
        for name, turn in turns.items():
            seconds = turn()
            print(f"round {round_}  {name:<40} {seconds:8.3f} s", file=sys.stderr, flush=True)
            if round_:
                times[name].append(seconds)
    return times


@contextmanager
def worker(script: Path, *arguments: str, waiting: Mapping[str, str]) -> Iterator[Callable[[str], float]]:
    """How to have an epoch run, by its name, in a process of ``script``, which calls ``work``.

    Its threads wait as ``waiting`` says, whatever is set here: where that is empty, as OpenMP has it.
    """
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    with subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env=own | dict(waiting), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as process:  # fmt: skip
        asked, answered = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)

        def seconds(name: str) -> float:
            asked.write(f"{name}\n")
            return float(answered.readline())

        try:
            yield seconds
        finally:
            process.kill()


def work(epochs: Mapping[str, Epoch], device: torch.device) -> None:
    """Run the epoch that each line of stdin names, and print its seconds."""
    for line in sys.stdin:
        print(f"{timed(epochs[line.strip()], device):.6f}", flush=True)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes beside, each of which would like a core for itself."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds, with what a card has yet to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
