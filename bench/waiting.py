"""How long threads should wait for each other before they sleep: ``python bench/waiting.py``.

The same epochs with each of several policies, on the quiet machine and beside a busy process a core, in processes that
take turns. Prints a table, and leaves it in ``bench/results/waiting.md``. A few minutes on two CPU cores; Linux.
"""

import lenet5  # isort: skip  # noqa: F401 - sets how threads wait, which is read when PyTorch is loaded

import argparse
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import joblib
import torch

from lenet5.data.datasets import Split, load_splits
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.errors import one_line_errors
from lenet5.files import write_bytes
from lenet5.params import load_params
from lenet5.processors import SPINS, use_own_share
from lenet5.training.engine import EngineChoice
from ours import engine_epoch
from report import RESULTS, machine, page, print_tables
from run import the_recipe
from turns import Turn, alternate, busy_processes, work, worker

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


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how threads should wait for each other.")
    parser.add_argument("--worker", action="store_true", help="for itself: train an epoch for each line on stdin")
    if parser.parse_args().worker:
        work_here()
        return
    with one_line_errors("waiting"), ExitStack() as stack:
        turns: dict[str, Turn] = {}
        for policy, waiting in POLICIES.items():
            epoch = stack.enter_context(worker(Path(__file__), "--worker", waiting=waiting))
            turns |= {f"{policy}; {engine}": partial(epoch, engine) for engine in ENGINES}
        quiet = rounds(turns, ROUNDS)
        with busy_processes(joblib.cpu_count()):
            shared = rounds(turns, SHARED_ROUNDS)
    usual = next(iter(POLICIES))
    rows = [["policy", *(f"{engine}, {what}" for engine in ENGINES for what in ("quiet", "beside others"))]]
    for policy in POLICIES:
        cells = [policy]
        for engine in ENGINES:
            alone = quiet[f"{policy}; {engine}"]
            cells.append(f"{quiet[f'{usual}; {engine}'] / alone:.0%} of libgomp's own speed")
            cells.append(f"{alone / shared[f'{policy}; {engine}']:.0%} of its quiet speed")
        rows.append(cells)
    print_tables([rows])
    facts = machine(torch.device("cpu"), ("torch",))
    write_bytes(RESULTS / "waiting.md", page("how threads wait", facts, [rows]).encode())


def rounds(turns: Mapping[str, Turn], count: int) -> dict[str, float]:
    """Median seconds of each epoch."""
    return {name: statistics.median(times) for name, times in alternate(turns, count).items()}


def work_here() -> None:
    """Train an epoch of ``IMAGES`` images with the engine that each line of stdin names."""
    use_own_share()
    cpu = torch.device("cpu")
    params = the_recipe(load_params(Path("params.yaml")))
    splits = load_splits(RAW_DIR, params.data, cpu)
    few = replace(splits, train=Split(splits.train.images[:IMAGES], splits.train.labels[:IMAGES]))
    work({name: engine_epoch(params, few, EngineChoice(name, False, "")) for name in ENGINES}, cpu)


if __name__ == "__main__":
    main()
