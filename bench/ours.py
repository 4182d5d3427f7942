"""This project's engines, as the bench measures them. Each is a function that trains one epoch."""

from contextlib import suppress
from functools import partial

import torch

from lenet5.data.datasets import Splits
from lenet5.params import Params
from lenet5.training import inductor, lanes
from lenet5.training.engine import Engine, EngineChoice
from lenet5.training.loop import laid_out, make_model
from lenet5.training.recipe import draw_plan
from tutorial import Epoch


def engine_epoch(params: Params, splits: Splits, choice: EngineChoice) -> Epoch:
    """One of the engines."""
    model = laid_out(make_model(params.model, 0, splits.train.labels.device), choice)
    engine = Engine(choice, model, splits, params.train)
    generator = torch.Generator().manual_seed(0)
    rates = [params.train.lr] * -(-len(splits.train) // params.train.batch_size)
    return lambda: engine.train_epoch(draw_plan(len(splits.train), params.train.augmentation, generator), rates)


def engine_epochs(params: Params, splits: Splits) -> dict[str, Epoch]:
    """Every engine that there is here, by its name in the table."""
    engine = partial(engine_epoch, params, splits)
    epochs = {"ours, eager": engine(EngineChoice("eager", False, ""))}
    if splits.train.labels.device.type == "cuda":
        if not inductor.lacking():
            epochs["ours, compiled"] = engine(EngineChoice("compiled", True, ""))
        epochs["ours, graph"] = engine(EngineChoice("graph", inductor.lacking() is None, ""))
    else:
        with suppress(lanes.UnavailableError):  # no compiler, say
            epochs["ours, lanes"] = engine(EngineChoice("lanes", False, ""))
    return epochs
