"""How long threads should wait for each other before they sleep: ``python bench/waiting.py``.

The same epochs with each of several policies, on the quiet machine and beside a busy process a core, in processes that
take turns. Prints a table, and leaves it in ``bench/results/waiting.md``. A few minutes on two CPU cores; Linux.
"""

import lenet5  # isort: skip  # noqa: F401 - sets how threads wait, which is read when PyTorch is loaded

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TypeAlias, cast

import joblib
import torch

from lenet5.data.datasets import Split, load_splits
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.errors import one_line_errors
from lenet5.files import write_bytes
from lenet5.params import load_params
from lenet5.processors import SPINS, use_own_share
from lenet5.training.engine import EngineChoice
from loops import engine_epoch
from report import RESULTS, machine, page, print_tables
from run import busy_processes, the_recipe

IMAGES = 20_000
"""Of an epoch: beside others, threads that never sleep take minutes for all."""
ROUNDS, SHARED_ROUNDS = 7, 3
ENGINES = ("lanes", "eager")
POLICIES: Mapping[str, Mapping[str, str]] = {
    "300,000 turns, libgomp's own": {"GOMP_SPINCOUNT": "300000"},
    "20,000 turns": {"GOMP_SPINCOUNT": "20000"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    f"{SPINS} turns, as lenet5 sets it": {"GOMP_SPINCOUNT": str(SPINS)},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}

Pipes: TypeAlias = tuple[IO[str], IO[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how threads should wait for each other.")
    parser.add_argument("--worker", action="store_true", help="for itself: train an epoch for each line on stdin")
    if parser.parse_args().worker:
        work()
        return
    with one_line_errors("waiting"), ExitStack() as stack:
        workers = {name: stack.enter_context(worker(policy)) for name, policy in POLICIES.items()}
        quiet = rounds(workers, ROUNDS)
        with busy_processes(joblib.cpu_count()):
            shared = rounds(workers, SHARED_ROUNDS)
    usual = next(iter(POLICIES))
    header = ["policy", *(f"{engine}, {what}" for engine in ENGINES for what in ("quiet", "beside others"))]
    rows = [header]
    for name in POLICIES:
        cells = [name]
        for engine in ENGINES:
            cells.append(f"{quiet[usual, engine] / quiet[name, engine]:.0%} of libgomp's own speed")
            cells.append(f"{quiet[name, engine] / shared[name, engine]:.0%} of its quiet speed")
        rows.append(cells)
    print_tables([rows])
    facts = machine(torch.device("cpu"), ("torch",))
    write_bytes(RESULTS / "waiting.md", page("how threads wait", facts, [rows]).encode())


@contextmanager
def worker(policy: Mapping[str, str]) -> Iterator[Pipes]:
    """The pipes to and from a process whose threads wait by ``policy``."""
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, __file__, "--worker"]
    process = subprocess.Popen(
        command, env=own | dict(policy), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield cast("Pipes", (process.stdin, process.stdout))
    finally:
        process.kill()
        process.wait()


def rounds(workers: Mapping[str, Pipes], count: int) -> dict[tuple[str, str], float]:
    """Median seconds of an epoch for each policy and engine; all take turns, and the first round is dropped."""
    times: dict[tuple[str, str], list[float]] = {(name, engine): [] for name in workers for engine in ENGINES}
    for round_ in range(count + 1):
        for (name, engine), measured in times.items():
            asked, answered = workers[name]
            asked.write(f"{engine}\n")
            seconds = float(answered.readline())
            print(f"round {round_}  {name:<30} {engine:<6} {seconds:8.3f} s", file=sys.stderr, flush=True)
            if round_:
                measured.append(seconds)
    return {key: statistics.median(measured) for key, measured in times.items()}


def work() -> None:
    """Train an epoch with the engine that each line of stdin names, and print its seconds."""
    use_own_share()
    params = the_recipe(load_params(Path("params.yaml")))
    splits = load_splits(RAW_DIR, params.data, torch.device("cpu"))
    few = replace(splits, train=Split(splits.train.images[:IMAGES], splits.train.labels[:IMAGES]))
    epochs = {name: engine_epoch(params, few, EngineChoice(name, False, "")) for name in ENGINES}
    for line in sys.stdin:
        start = time.perf_counter()
        epochs[line.strip()]()
        print(f"{time.perf_counter() - start:.6f}", flush=True)


if __name__ == "__main__":
    main()
