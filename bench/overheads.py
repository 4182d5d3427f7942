"""What a search costs beside its trainings: ``python bench/overheads.py``.

``--on HOST:PORT`` measures it on a cluster too. The sweep is sweeps/wide.yaml, whose trials here give the rows of their
epochs and train nothing. Prints a table, and leaves it in ``bench/results/overheads.md``. About a minute.
"""

import lenet5  # isort: skip  # noqa: F401 - sets how threads wait, which is read when PyTorch is loaded

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import joblib
import torch

from lenet5.errors import one_line_errors
from lenet5.files import write_bytes
from lenet5.params import Params, load_params
from lenet5.processors import use_own_share
from lenet5.results.history import EpochRow
from lenet5.search.cluster import ClusterEngine
from lenet5.search.driver import Driver
from lenet5.search.engine import Engine, Gained, Job, Row
from lenet5.search.local import LocalEngine
from lenet5.search.plan import Plan, load_plan
from lenet5.search.study import open_study
from report import RESULTS, machine, page, print_tables

SWEEP = Path("sweeps/wide.yaml")
REPETITIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a search costs beside its trainings.")
    parser.add_argument("--on", metavar="HOST:PORT", help="a cluster that `lenet5 cluster head` has started")
    arguments = parser.parse_args()
    with one_line_errors("overheads"), tempfile.TemporaryDirectory() as folder:
        base = load_params(Path("params.yaml"))
        plan = load_plan(SWEEP, base).model_copy(update={"prune": False})
        workers = joblib.cpu_count()
        places: dict[str, Callable[[], Engine]] = {
            f"{workers} workers of this machine": lambda: LocalEngine(
                rows_alone, workers, partial(use_own_share, workers), lambda: None
            )
        }
        if arguments.on:
            places["a cluster"] = lambda: ClusterEngine(rows_alone, arguments.on, 0, base.download)
        rows = []
        for name, engine in places.items():
            first = statistics.median(seconds_to_first_row(engine, base) for _ in range(REPETITIONS))
            trial = seconds_a_trial(engine, plan, base, Path(folder, f"{name}.journal"))
            rows.append((f"{name}: from the start to the first row", f"{first:.2f} s"))
            rows.append((f"{name}: a trial of {epochs_of(plan)} epochs that trains nothing", f"{1000 * trial:.0f} ms"))
    tables = [[("what", "takes"), *rows]]
    facts = machine(torch.device("cpu"), ("torch", "optuna", *(["ray"] if arguments.on else [])))
    print_tables(tables)
    write_bytes(RESULTS / "overheads.md", page("overheads of a search", facts, tables).encode())


def rows_alone(params: Mapping[str, Any]) -> Iterator[Row]:
    """A trial's rows without a training: each a little better than the one before."""
    epochs = params["train"]["epochs"]
    for epoch in range(1, epochs + 1):
        loss = 1 - epoch / (2 * epochs)
        yield vars(EpochRow(epoch, 0.1, *[loss] * 10))


def seconds_to_first_row(engine: Callable[[], Engine], base: Params) -> float:
    """From nothing, through the start of a worker, to the first word of its job."""
    start = time.perf_counter()
    with closing(engine()) as running:
        while not running.free():
            time.sleep(0.01)
        running.start(Job("0", base.model_dump(by_alias=True)))
        first = next(event for wait in repeat(1.0) for event in running.events(wait))
        seconds = time.perf_counter() - start
    match first:
        case Gained():
            return seconds
        case _:
            raise RuntimeError(f"no row came: {first}")


def seconds_a_trial(engine: Callable[[], Engine], plan: Plan, base: Params, journal: Path) -> float:
    """A whole search of the sweep's trials, by their number, once all workers have started."""
    study = open_study(journal, "overheads", plan)
    study.begin({})
    ended: list[float] = []
    with closing(engine()) as running:
        driver = Driver(study, plan, base, running, lambda _: ended.append(time.perf_counter()), print)
        while driver.step():
            pass
    started = len(ended) // 4  # the first trials wait for their workers
    return (ended[-1] - ended[started]) / (len(ended) - 1 - started)


def epochs_of(plan: Plan) -> int:
    """How many rows each trial gives."""
    return int(plan.fixed["train.epochs"])


if __name__ == "__main__":
    main()
