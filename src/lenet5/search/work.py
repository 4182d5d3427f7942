"""What a worker does: one training, without the test images, row by row."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lenet5.data.datasets import load_without_test
from lenet5.params import Params
from lenet5.search.engine import HopelessError, Row
from lenet5.training.card_errors import CardError, card_errors
from lenet5.training.loop import DivergedError, Training, make_model, prepare


def train(raw_dir: Path, engine_taken: str | None, params: Mapping[str, Any]) -> Iterator[Row]:
    """Train ``params``, the whole of params.yaml, as the stage ``train`` does; each epoch's row of the history.

    With the engine that the driver has taken, if it has: a worker that cannot have it is to say so. What concerns the
    test images is None: they are not even read. Raises HopelessError where the loss diverges, UserError as training
    does, SystemExit where a card could not go on.
    """
    asked = with_engine(Params.model_validate(params), engine_taken)
    try:
        with card_errors():
            splits, engine = prepare(raw_dir, asked, load_without_test)
            model = make_model(asked.model, asked.train.seed, splits.train.labels.device)
            for row in Training(model, splits, asked.train, engine).epochs():
                yield asdict(row)
    except DivergedError as error:
        raise HopelessError(str(error)) from None
    except CardError as error:
        raise SystemExit(str(error)) from None  # what the card holds is undefined from now on


def with_engine(params: Params, engine: str | None) -> Params:
    """``params`` with that ``train.engine``; as they are without one."""
    return params.model_copy(update={"train": params.train.model_copy(update={"engine": engine})}) if engine else params
