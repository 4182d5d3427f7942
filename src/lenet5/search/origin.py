"""Where a sweep comes from: all that must stay the same while it goes on, by name, so that a difference can be told."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from lenet5.data.fashion_mnist import data_digest
from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.search.plan import Plan, shared_params
from lenet5.training.checkpoint import code_digests


def origin_of(plan: Plan, base: Params, pipeline: Path) -> dict[str, str]:
    """Space, objective, base params, code (the deps of ``train`` in ``pipeline``), data and PyTorch.

    How many trials there are and how many run at a time is no part of it.
    """
    return {
        "objective": plan.objective,
        "prune": str(plan.prune),
        **{f"space of {name}": str(values) for name, values in plan.space.items()},
        **shared_params(plan, base),
        **code_of(pipeline),
    }


def code_of(pipeline: Path) -> dict[str, str]:
    """What the same params give the same values with: code, data and PyTorch."""
    return {**code_digests(pipeline), "FashionMNIST": data_digest(), "PyTorch": version("torch")}


def unchanged_code(pipeline: Path) -> Callable[[], None]:
    """What raises UserError once the code that trains is another than now."""
    began = code_digests(pipeline)

    def check() -> None:
        if told := differences(began, code_digests(pipeline)):
            raise UserError(f"{told[0]} while this went on, and a worker would start with it; put it back, then again")

    return check


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, a few words each."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [_difference(name, before.get(name, "absent"), now.get(name, "absent")) for name in changed]


def _difference(name: str, before: str, now: str) -> str:
    if name.startswith(("src/", "stages/")):
        return f"{name} was changed"
    return f"{name} was {before}, is {now}"
