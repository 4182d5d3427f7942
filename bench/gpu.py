"""The first ten minutes on a GPU: is it right, and how fast? ``PYTHONPATH=src python bench/gpu.py``.

Needs torch, numpy and pydantic alone, and FashionMNIST only for its accuracy. Every part runs in a process of its own
under its own time limit, and prints as it goes: one that fails or hangs takes nothing from the others. What they found
is left as JSON and as a table in ``bench/results/``, named by the card. On a CPU (``--device cpu --small --out
FOLDER``) it shows that it works, and measures nothing worth quoting.
"""

import lenet5  # isort: skip  # noqa: F401 - sets how threads wait, which is read when PyTorch is loaded

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from correctness import CHECKS, EAGER, RECIPES, Recipe, engines, recipe, stand_in
from lenet5.data.datasets import Split, Splits, load_splits, to_float
from lenet5.data.fashion_mnist import RAW_DIR, SHA256
from lenet5.network.lenet5 import LeNet5
from lenet5.params import DataParams
from lenet5.training import cuda_graph
from lenet5.training.card_errors import CardError
from lenet5.training.cards import NoDriverError, ask_driver
from lenet5.training.device import card_facts, obstacle, pick_device, set_deterministic, set_precision
from lenet5.training.engine import Engine, EngineChoice, brief_steps, choose_engine, run_launches, run_steps
from lenet5.training.loop import Training, laid_out, make_model
from lenet5.training.recipe import BatchLoss, autograd, batch_loss, draw_plan, make_optimizer
from lenet5.training.replicas import replica_epochs
from turns import timed
from tutorial import BATCH, LEARNING_RATE, tutorial_epoch

RESULTS = Path(__file__).parent / "results"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KERNELS_SHOWN = 15
SECONDS_OF_1000 = "seconds of 1,000 epochs, by these"

Figures = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Where the parts run, and whether only to see them work."""

    device: str
    small: bool


def machine(setting: Setting) -> Figures:
    """Versions, driver, card."""
    device = pick_device(setting.device)
    yield "device", torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    yield "python", platform.python_version()
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "processors", os.cpu_count()
    yield from {"torch": torch.__version__, "numpy": np.__version__, **card_facts(device)}.items()
    try:
        yield "driver", ask_driver().version
    except NoDriverError as error:
        yield "driver", f"does not say: {error}"
    if found := obstacle():
        yield "no card because", found.reason
    if device.type == "cuda":
        yield "built for", " ".join(torch.cuda.get_arch_list())
        yield "memory, MB", torch.cuda.get_device_properties(device).total_memory / 1e6


def correctness(setting: Setting) -> Figures:
    """Each of RECIPES, 20 steps, on every engine; warnings are errors."""
    device, wrong = pick_device(setting.device), 0
    for engine, choice in engines(device).items():
        for name, one in RECIPES.items():
            for asked, check in CHECKS.items():
                torch.compiler.reset()
                said = _outcome(partial(check, one, choice, device))
                wrong += said != "yes"
                yield f"{engine}, {name}: {asked}", said
    if wrong:
        raise AssertionError(f"{wrong} checks failed")


def _outcome(check: Callable[[], None]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check()
    except Exception as error:
        return "NO: " + (" ".join(str(error).split())[:300] or type(error).__name__)
    return "yes"


def speed(setting: Setting) -> Figures:
    """Milliseconds an epoch of every engine in either memory format, what comes before the first, and its memory."""
    device, splits, one = _set_up(setting)
    for engine, choice in engines(device).items():
        for layout, memory_format in FORMATS.items():
            model = make_model(one[0], 0, device).to(memory_format=memory_format)
            before, spent = _memory(device), {"warming_up": 0.0, "capturing": 0.0}
            recorder = partial(record_and_time, spent)
            epoch = _epoch(Engine(choice, model, splits, one[1], recorder), splits, one)
            first = timed(epoch, device)
            yield (
                f"{engine}, {layout}",
                {
                    "ms_an_epoch": _median_ms(epoch, device, 1 if setting.small else 5),
                    "seconds_of_the_first": first,
                    **{f"of_them_{what}": seconds for what, seconds in spent.items()},
                    "mb_before": before,
                    "mb_after": _memory(device),
                },
            )


def record_and_time(
    spent: dict[str, float],
    function: Callable[[], torch.Tensor],
    warm_up: Callable[[], object],
    state: Sequence[torch.Tensor],
) -> tuple[Callable[[], None], torch.Tensor]:
    """``cuda_graph.record``; adds to ``spent`` the seconds of warming up, compilation among them, and of capturing."""

    def counted(what: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        spent[what] += time.perf_counter() - start
        return result

    return cuda_graph.record(partial(counted, "capturing", function), partial(counted, "warming_up", warm_up), state)


class OneByOne(Dataset[Any]):
    """Images as torchvision's FashionMNIST with ToTensor gives them, but for its way through Pillow."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return to_float(self._split.images[index : index + 1])[0], int(self._split.labels[index])


def tutorial(setting: Setting) -> Figures:
    """Milliseconds an epoch of the tutorial's loop with a DataLoader."""
    device, splits, _ = _set_up(setting)
    epoch = tutorial_epoch(OneByOne(splits.train.to(torch.device("cpu"))), device, workers=0)
    if not setting.small:
        epoch()
    yield "ms_an_epoch", _median_ms(epoch, device, 1 if setting.small else 3)


def profile(setting: Setting) -> Figures:
    """Ten steps of every engine, kernels by time."""
    device, splits, one = _set_up(setting)
    few = _few_steps(splits, one, 10)
    steps = -(-len(few.train) // BATCH)
    for engine, choice in engines(device).items():
        epoch = _epoch(Engine(choice, laid_out(make_model(one[0], 0, device), choice), few, one[1]), few, one)
        epoch()
        with torch.profiler.profile() as profiler:
            timed(epoch, device)
        on_card = device.type == "cuda"
        events = [event for event in profiler.key_averages() if (event.device_type.name == "CUDA") == on_card]
        column = "self_device_time_total" if on_card else "self_cpu_time_total"
        events.sort(key=lambda event: -getattr(event, column))
        yield f"{engine}, kernels a step", sum(event.count for event in events) / steps
        for event in events[:KERNELS_SHOWN]:
            yield f"{engine}, {event.key[:80]}", {"calls": event.count, "microseconds": getattr(event, column)}


def evaluation(setting: Setting) -> Figures:
    """Milliseconds to measure the weights on all splits."""
    device, splits, one = _set_up(setting)
    for engine, choice in engines(device).items():
        measuring = Engine(choice, laid_out(make_model(one[0], 0, device), choice), splits, one[1]).measure
        measuring()
        yield f"{engine}, ms", _median_ms(measuring, device, 1 if setting.small else 5)


def replicas(setting: Setting) -> Figures:
    """Milliseconds of an epoch for one of N replicas, measuring included; their first, which records, is left out."""
    device, splits, one = _set_up(setting)
    repetitions = 1 if setting.small else 3
    params = one[1].model_copy(update={"epochs": 1 + repetitions})
    choice = _chosen((one[0], params), splits, device)
    for count in (1, 2) if setting.small else (1, 8, 32):
        epochs = replica_epochs(one[0], splits, params, range(count), choice)
        next(epochs)
        yield f"{count}, ms a replica's epoch", _median_ms(partial(next, epochs), device, repetitions) / count
        yield f"{count}, MB", _memory(device)


def accuracy(setting: Setting) -> Figures:
    """The default recipe to its end, measured after each epoch."""
    device, splits, one = _set_up(setting)
    params = one[1].model_copy(update={"epochs": 2 if setting.small else 100})
    choice = _chosen((one[0], params), splits, device)
    training = Training(make_model(one[0], 0, device), splits, params, choice)
    yield "engine", choice.name
    yield "images", "FashionMNIST" if _data_is_there() else "a stand-in: the accuracy says nothing"
    epochs = training.epochs()
    first, rest = timed(partial(next, epochs), device), timed(lambda: list(epochs), device)
    yield "seconds", first + rest
    yield SECONDS_OF_1000, first + 999 * rest / (params.epochs - 1)
    yield "test accuracy", training.rows[-1].test_accuracy
    yield "test loss", training.rows[-1].test_loss


def full_memory(setting: Setting) -> Figures:
    """A capture for which the card's memory does not suffice ends in one line."""
    device, splits, one = _set_up(setting)
    if device.type != "cuda":
        yield "out of memory", "left out: it needs a card"
        return
    model, choice = make_model(one[0], 0, device), EngineChoice("graph", False, "")
    engine = Engine(choice, model, splits, one[1], record_without_memory)
    try:
        _epoch(engine, splits, one)()
    except CardError as error:
        yield "out of memory", str(error)
    else:
        raise AssertionError("the memory sufficed: nothing was shown")


def record_without_memory(
    function: Callable[[], torch.Tensor], warm_up: Callable[[], object], state: Sequence[torch.Tensor]
) -> tuple[Callable[[], None], torch.Tensor]:
    """``cuda_graph.record``, with too little memory left for the smallest block once the warm-up is over."""

    def warm_up_and_limit() -> None:
        torch.cuda.set_per_process_memory_fraction(1.0)
        warm_up()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # as a capture does when it begins
        total = torch.cuda.get_device_properties().total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)

    return cuda_graph.record(function, warm_up_and_limit, state)


def savings(setting: Setting) -> Figures:
    """Milliseconds of an epoch that gathers no images, and of one that counts no hits: what that could save at most."""
    device, splits, one = _set_up(setting)
    data, size = splits.train, one[1].batch_size
    images, nothing = to_float(data.images[:size]), torch.zeros((), dtype=torch.long, device=device)
    model = laid_out(make_model(one[0], 0, device), EngineChoice("graph", False, ""))

    def gathers_nothing(order: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, labels = model(images[: len(order)]), data.labels[: len(order)]
        return F.cross_entropy(logits, labels), (logits.detach().argmax(1) == labels).sum()

    def counts_nothing(order: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.cross_entropy(model(to_float(data.images[order])), data.labels[order]), nothing

    does_all = partial(batch_loss, model, data, one[1])
    for name, loss_of in {"all": does_all, "no images": gathers_nothing, "no hits": counts_nothing}.items():
        epoch = _epoch_of(loss_of, model, splits, one)
        epoch()
        yield f"{name}, ms", _median_ms(epoch, device, 1 if setting.small else 5)


@dataclass(frozen=True)
class Part:
    """What is asked, and for how many seconds at most."""

    run: Callable[[Setting], Figures]
    limit: float

    @property
    def name(self) -> str:
        """As the table has it."""
        return self.run.__name__.replace("_", " ")


# Ten minutes at most, together.
PARTS = [
    Part(machine, 20), Part(correctness, 190), Part(speed, 100), Part(tutorial, 60), Part(profile, 40),
    Part(evaluation, 30), Part(replicas, 60), Part(accuracy, 60), Part(full_memory, 20), Part(savings, 20),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Is training right on this card, and how fast is it?")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="few images: to see it work, not to quote")
    parser.add_argument("--out", type=Path, help="folder for the results (default: bench/results)")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.out:
        parser.error("figures of a CPU are no results: say with --out where they go")
    setting = Setting(arguments.device, arguments.small)
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for part in PARTS:
        found[part.name], error = run_apart(part, setting)
        if error:
            failed[part.name] = error
    found["targets"] = targets(found)
    write(found, failed, arguments.out or RESULTS)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run_apart(part: Part, setting: Setting) -> tuple[dict[str, Any], str]:
    """What the part found, printed as it came, and why it did not come to its end ("" where it did)."""
    # Forked where it can be: PyTorch is imported once. Nothing here may start CUDA, or the children could not.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(part.run, setting, theirs))
    print(f"\n{part.name} (at most {part.limit:.0f} s)", flush=True)
    process.start()
    theirs.close()
    found: dict[str, Any] = {}
    error = _listen(ours, found, time.monotonic() + part.limit)
    process.kill()
    process.join()
    if error:
        print(error, flush=True)
    return found, error


def _listen(pipe: Connection, found: dict[str, Any], end: float) -> str:
    try:
        while pipe.poll(max(0.0, end - time.monotonic())):
            name, value = pipe.recv()
            if name is None:
                return str(value)
            found[name] = value
            print(f"  {name}: {_shown(value)}", flush=True)
    except EOFError:
        return "its process died"
    return "it took too long"


def _report(run: Callable[[Setting], Figures], setting: Setting, pipe: Connection) -> None:
    try:
        for figure in run(setting):
            pipe.send(figure)
    except Exception:
        pipe.send((None, traceback.format_exc()))
    else:
        pipe.send((None, ""))


def targets(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What is aimed at, by what was found; nothing for a part that did not come so far."""
    fastest = min((row["ms_an_epoch"] for row in found["speed"].values()), default=None)
    loop = found["tutorial"].get("ms_an_epoch")
    figures = {
        "ms an epoch of the fastest engine, at most 10": fastest,
        "times as fast as the tutorial's loop, at least 100": loop / fastest if loop and fastest else None,
        "seconds of 1,000 epochs with measuring, at most 15": found["accuracy"].get(SECONDS_OF_1000),
        "ms an epoch of one of 32 replicas, at most 8": found["replicas"].get("32, ms a replica's epoch"),
    }
    return {name: value for name, value in figures.items() if value is not None}


def write(found: dict[str, dict[str, Any]], failed: dict[str, str], folder: Path) -> None:
    """All of it as JSON, and as one table."""
    name = found["machine"].get("device", "no device")
    path = folder / ("gpu-" + re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"))
    folder.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(found | {"failed": failed}, indent=2) + "\n", encoding="utf-8")
    rows = [(part, what, _shown(value)) for part, figures in found.items() for what, value in figures.items()]
    rows += [(part, "failed", error.strip().splitlines()[-1]) for part, error in failed.items()]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [("part", "what", "figure"), ("---",) * 3, *rows]]
    table = "\n".join("| " + " | ".join(row) + " |" for row in cells)
    path.with_suffix(".md").write_text(f"# First minutes on a card: {name}\n\n{table}\n", encoding="utf-8")
    print(f"\nwritten to {path}.json and .md", flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _set_up(setting: Setting) -> tuple[torch.device, Splits, Recipe]:
    """The device, all images or a few on it, and the default recipe: the tutorial's."""
    device = pick_device(setting.device)
    set_deterministic(True)
    set_precision("fp32", device)
    return device, _splits(setting.small, device), recipe()


def _splits(small: bool, device: torch.device) -> Splits:
    if _data_is_there() and not small:
        return load_splits(RAW_DIR, DataParams(validation_size=5000, train_sample=10_000, split_seed=0), device)
    sizes = (1000, 200, 200, 200) if small else (55_000, 10_000, 5000, 10_000)
    return Splits(*(stand_in(size, seed).to(device) for seed, size in enumerate(sizes)))


def _data_is_there() -> bool:
    return all((RAW_DIR / name).is_file() for name in SHA256)


def _few_steps(splits: Splits, one: Recipe, steps: int) -> Splits:
    images = torch.arange(min(len(splits.train), steps * one[1].batch_size), device=splits.train.labels.device)
    return Splits(splits.train.take(images), splits.train_sample, splits.validation, splits.test)


def _chosen(one: Recipe, splits: Splits, device: torch.device) -> EngineChoice:
    return choose_engine(*one, len(splits.train), device) if device.type == "cuda" else EAGER


def _epoch(engine: Engine, splits: Splits, one: Recipe) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    rates = [LEARNING_RATE] * -(-len(splits.train) // BATCH)
    return lambda: engine.train_epoch(draw_plan(len(splits.train), one[1].augmentation, generator), rates)


def _epoch_of(loss_of: BatchLoss, model: LeNet5, splits: Splits, one: Recipe) -> Callable[[], object]:
    """An epoch of the graph engine with another loss; not recorded on a CPU."""
    size, device = one[1].batch_size, splits.train.labels.device
    optimizer = make_optimizer(model.parameters(), one[1])
    gradients = partial(autograd, loss_of, optimizer)
    steps: Callable[..., torch.Tensor] = partial(run_steps, model, optimizer, gradients, gradients, size)
    if device.type == "cuda":
        brief = partial(brief_steps, steps, size)
        steps = cuda_graph.Replayed(steps, brief, lambda: list(model.parameters()), cuda_graph.record)
    plan = draw_plan(len(splits.train), one[1].augmentation, torch.Generator().manual_seed(0))
    rates = [LEARNING_RATE] * -(-len(splits.train) // size)
    return partial(run_launches, steps, plan, rates, size, device)


def _median_ms(function: Callable[[], object], device: torch.device, repetitions: int) -> float:
    return 1000 * statistics.median(timed(function, device) for _ in range(repetitions))


def _memory(device: torch.device) -> float:
    """Megabytes that PyTorch holds of the card; 0 on a CPU."""
    return torch.cuda.memory_reserved() / 1e6 if device.type == "cuda" else 0.0


if __name__ == "__main__":
    main()
