"""Tell an improvement from luck: the current params trained from several seeds.

On a CPU one process a core, with one thread each; on a GPU many at once, their weights stacked, each with its own
shuffling. The workspace's outs stay as they are.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import joblib
import torch
from rich.console import Console
from rich.table import Table

from lenet5 import search
from lenet5.commands.seeds_display import SeedsDisplay
from lenet5.commands.seeds_journal import Journal, Replica, journal
from lenet5.data.datasets import load_splits
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.errors import UserError
from lenet5.files import digest
from lenet5.params import LARGEST_SEED, Params, load_params
from lenet5.processors import SLOWED, busy, use_own_share
from lenet5.record.lineage import lineage_tags, read_code
from lenet5.record.result import evaluation_figures
from lenet5.results.history import EpochRow
from lenet5.search.cluster import ClusterEngine
from lenet5.search.engine import Engine, Failed, Gained, Lost
from lenet5.search.local import LocalEngine
from lenet5.search.luck import CONFIDENCE, Spread, spread
from lenet5.search.origin import unchanged_code
from lenet5.search.ray_settings import refuse_share
from lenet5.search.runs import run_all
from lenet5.search.seeds import TOGETHER, seed_jobs, train_seeds
from lenet5.training import replicas
from lenet5.training.checkpoint import result_key
from lenet5.training.device import pick_device
from lenet5.training.engine import choose_engine
from lenet5.workspace import PARAMS_FILE, PIPELINE_FILE, SEEDS, main_workspace

if TYPE_CHECKING:
    from lenet5.record.seeds import SeedsRun  # MLflow, which is imported when the params are known to be right

_ABOUT_A_MEAN = ("deviation", "low", "high")


def seeds(count: int, on: str | None, gpus: float) -> int:
    """Train the current params from ``count`` seeds, show the spread of every figure, and record it.

    They are trained here, or on the cluster at ``on``, each with ``gpus`` of a card.

    Seeds that have finished are kept, whatever ends this process, and are not trained again.
    """
    refuse_share(gpus, on)
    params = load_params(PARAMS_FILE)
    wanted = seeds_from(params.train.seed, count)
    if on:
        params, key, engine = _on_cluster(params, on, gpus)
    else:
        params, key, engine = _on_this_machine(params, count)
    with closing(engine), journal(main_workspace() / SEEDS, key) as kept:
        record = _open_record(params, wanted, f"{key[:32]} {wanted[0]} to {wanted[-1]}")
        try:
            finished = _train(params, wanted, engine, kept, record)
            spreads = {name: spread([one.figures[name] for one in finished]) for name in finished[0].figures}
            Console().print(spread_table(spreads, count))
            for one in finished:
                record.add(one.seed, one.rows, one.figures)
            record.finish(_summary(spreads))
        except BaseException:
            engine.close()  # first: what goes on training holds the rest up
            record.interrupted()
            raise
        print(f"MLflow run {record.run_id}: {record.page}")
    return 0


def seeds_from(first: int, count: int) -> list[int]:
    """``count`` seeds, one after the other. Raises UserError where there are none, or no spread."""
    if count < 2:
        raise UserError(f"--count {count}: a spread needs at least 2 seeds")
    if first + count - 1 > LARGEST_SEED:
        raise UserError(f"--count {count}: from train.seed {first} that goes beyond {LARGEST_SEED}; lower train.seed")
    return list(range(first, first + count))


def _on_this_machine(params: Params, count: int) -> tuple[Params, str, Engine]:
    """The params with the device they are trained on, what decides their results, and who trains."""
    device, check = pick_device(params.train.device), unchanged_code(PIPELINE_FILE)
    splits = load_splits(RAW_DIR, params.data, torch.device("cpu"))  # what is wrong with the data is said once
    params = _with(params, device=device.type)  # settled, so that no worker says again why it is not the GPU
    choice = choose_engine(params.model, params.train, len(splits.train), device)
    key = result_key(_with(params, seed=0), PIPELINE_FILE, device, choice)
    if device.type == "cuda":
        work = partial(train_seeds, RAW_DIR, None)
        return params, _stacked_key("stacked", key), LocalEngine(work, 1, use_own_share, check)
    if choice.name != "lanes":
        print(f"engine {choice.name}: {choice.reason}", flush=True)
    workers, work = min(count, joblib.cpu_count()), partial(train_seeds, RAW_DIR, choice.name)
    return params, key, LocalEngine(work, workers, partial(torch.set_num_threads, 1), check)


def _on_cluster(params: Params, address: str, gpus: float) -> tuple[Params, str, Engine]:
    """The same for a cluster, whose machines must have what this one has, but for the card."""
    params = _with(params, device="cuda" if gpus else "cpu")
    cpu = torch.device("cpu")
    here = _with(params, seed=0) if not gpus else _with(params, seed=0, engine="eager", precision="fp32")
    choice = choose_engine(here.model, here.train, 1, cpu)
    key = result_key(_with(params, seed=0), PIPELINE_FILE, cpu, choice)
    engine = ClusterEngine(partial(train_seeds, RAW_DIR, None if gpus else choice.name), address, gpus, params.download)
    return params, _stacked_key("cards of a cluster", key) if gpus else key, engine


def _stacked_key(where: str, key: str) -> str:
    """The key of seeds trained together: ``key``, and the code by which they are and ``train`` is not."""
    code = [inspect.getsource(module) for module in (replicas, search.seeds)]
    return digest(repr((where, key, code)).encode())


def _with(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def _train(params: Params, wanted: Sequence[int], engine: Engine, kept: Journal, record: "SeedsRun") -> list[Replica]:
    """Train those of ``wanted`` that ``kept`` does not hold, each kept and recorded as it ends; all of them."""
    finished = {seed: one for seed, one in kept.read().items() if seed in wanted}
    rows: dict[int, list[EpochRow]] = {seed: [] for seed in wanted}
    sender = _Sender(record)
    with SeedsDisplay(Console(), wanted, params.train.epochs) as display:
        for one in finished.values():
            display.finished(one.seed, len(one.rows), one.figures)
            sender.send(one, display)
        missing = [seed for seed in wanted if seed not in finished]
        jobs = seed_jobs(params, missing, TOGETHER if params.train.device == "cuda" else 1)
        seeds_of = {job.key: job.params["seeds"] for job in jobs}
        crowded = ""
        for event in run_all(engine, jobs):
            if not crowded and isinstance(engine, LocalEngine) and (crowded := busy()):
                display.say(f"{SLOWED}: {crowded}")
            if isinstance(event, Lost):
                display.say(f"{event.key}: {event.reason}; it starts again")
                display.again(seeds_of[event.key])
                rows |= {seed: [] for seed in seeds_of[event.key]}
            elif isinstance(event, Failed):
                raise UserError(f"{event.key}: {event.reason}")
            elif isinstance(event, Gained):
                seed = event.row["seed"]
                if "epoch" in event.row:
                    rows[seed].append(EpochRow(**event.row["epoch"]))
                    display.epoch(seed, rows[seed][-1])
                    continue
                figures = evaluation_figures({**event.row["figures"], "best_epoch": event.row["chosen_epoch"]})
                finished[seed] = Replica(seed, rows[seed], figures)
                kept.add(finished[seed])
                display.finished(seed, len(rows[seed]), figures)
                sender.send(finished[seed], display)
    return [finished[seed] for seed in wanted]


class _Sender:
    """Records seeds as they end. A store that goes away holds nothing up: the rest is sent when all have ended."""

    def __init__(self, record: "SeedsRun") -> None:
        self._record, self._behind = record, False

    def send(self, one: Replica, display: SeedsDisplay) -> None:
        """Record ``one``; says once that it cannot be done now."""
        if self._behind:
            return
        try:
            self._record.add(one.seed, one.rows, one.figures)
        except (UserError, OSError) as error:  # a full disk too, where the store writes files
            self._behind = True
            display.say(f"training goes on, and the rest is sent at its end: {error}")


def spread_table(spreads: Mapping[str, Spread], count: int) -> Table:
    """One row a figure."""
    table = Table("figure", "mean", "standard deviation", f"{CONFIDENCE:.0%} interval", title=f"{count} seeds")
    for name, one in spreads.items():
        table.add_row(name, f"{one.mean:.4f}", f"{one.deviation:.4f}", f"{one.low:.4f} to {one.high:.4f}")
    return table


def _summary(spreads: Mapping[str, Spread]) -> dict[str, float]:
    """A run's figures, for which the means stand, and what is known of the means."""
    about = {f"{name}_{kind}": getattr(one, kind) for name, one in spreads.items() for kind in _ABOUT_A_MEAN}
    return {name: one.mean for name, one in spreads.items()} | about


def _open_record(params: Params, wanted: Sequence[int], question: str) -> "SeedsRun":
    from lenet5.record.seeds import THEN, SeedsRun
    from lenet5.record.store import connect

    code = read_code()
    tags = lineage_tags(code) | {"mlflow.source.name": "lenet5 seeds"}
    return SeedsRun(connect(params, THEN), params, wanted, question, tags, code)
