"""A sweep's file: what is searched, checked against the params it stands for before anything starts.

``python -m lenet5.search.plan`` prints the JSON schema that editors check such a file against.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag

from lenet5.errors import UserError, shown
from lenet5.params import (
    ONE_OF,
    Params,
    Section,
    check,
    check_params,
    flat_params,
    param_values,
    suggestion,
    with_values,
)
from lenet5.workspace import PARAMS_FILE

SEARCHED = ("model", "train")
"""The sections that can be searched; all others say what is measured, or how."""

_FIXED = ("data", *SEARCHED)
_SECTIONS = {"fixed": _FIXED, "space": SEARCHED}
_NEVER = {
    "train.seed": "its luck would be searched; `lenet5 seeds` shows how much there is",
    "train.weights": "the images that choose best_validation measure the trial too, and flatter it; put it under fixed",
}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError("input should be a finite number")
    return value


# Whole numbers stay whole: a param may want them so.
Number: TypeAlias = Annotated[float, PlainValidator(_number, json_schema_input_type=float)]


class Range(Section):
    """The numbers from ``low`` to ``high``, both among them."""

    low: Number
    high: Number
    log: bool = Field(
        default=False, description="Tried evenly on a logarithmic scale: as often from 1 to 10 as to 100."
    )


class Prune(Section):
    """When a trial that is worse than others may be ended."""

    after: float = Field(gt=0, lt=1, description="The share of its epochs that every trial gets.")


def _several(value: object) -> object:
    if not isinstance(value, list | dict):
        raise ValueError("give a list of values, or low and high; what is fixed stands under fixed")  # noqa: TRY004
    return value


def _kind_of_values(value: object) -> str:
    return f"{ONE_OF}{'choices' if isinstance(value, list) else 'range'}"


def _kind_of_pruning(value: object) -> str:
    return f"{ONE_OF}{'never' if isinstance(value, bool) else 'some'}"


Values: TypeAlias = Annotated[
    Annotated[list[bool | int | float | str], Tag(f"{ONE_OF}choices")] | Annotated[Range, Tag(f"{ONE_OF}range")],
    Discriminator(_kind_of_values),
    BeforeValidator(_several),
]
Pruning: TypeAlias = Annotated[
    Annotated[Literal[False], Tag(f"{ONE_OF}never")] | Annotated[Prune, Tag(f"{ONE_OF}some")],
    Discriminator(_kind_of_pruning),
]


class Plan(Section):
    """A sweep: which params are tried, how many times, and what makes one better than another."""

    trials: int = Field(ge=1, le=100_000, description="Trials in all, those that fail or are pruned among them.")
    workers: int = Field(ge=1, le=1024, description="Trials at a time on this machine; a cluster's size decides there.")
    objective: Literal["validation_loss", "validation_accuracy"] = Field(
        description="Of the weights that train.weights keeps; never a figure of the test images."
    )
    prune: Pruning = Field(description="When trials may be ended early; false: never.")
    fixed: dict[str, bool | int | float | str] = Field(
        description="Params that all trials share, by their dotted names; all others are as params.yaml has them."
    )
    space: dict[str, Values] = Field(
        min_length=1, description="Params that are searched: a list of values, or a range of numbers."
    )


def load_plan(path: Path, base: Params) -> Plan:
    """Read the sweep's file ``path`` and check it against ``base``, the params it changes.

    Raises UserError with what is wrong.
    """
    from lenet5.dialect import parse

    try:
        content = parse(path.read_bytes(), path)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; sweeps/ holds those that come with the project") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold the keys {', '.join(Plan.model_fields)}, not {shown(content)}")
    # Names first: what stands under a wrong one is held against nothing.
    if mistakes := [*_wrong_names(content, base)]:
        raise UserError(f"{path}: {'; '.join(mistakes)}")
    plan = check(Plan, content, path)
    if mistakes := [*_wrong_ranges(plan, base)]:
        raise UserError(f"{path}: {'; '.join(mistakes)}")
    _refuse_wrong_values(plan, base, path)
    known = param_values(base, *SEARCHED)
    return plan.model_copy(update={"space": {name: _as_param(of, known[name]) for name, of in plan.space.items()}})


def trial_params(plan: Plan, base: Params, tried: Mapping[str, Any]) -> Params:
    """The params of a trial: those of ``base``, what the plan fixes, and what is ``tried``.

    Raises UserError where ``base`` does not go with the rest: params.yaml was changed since the plan was checked.
    """
    return check_params(with_values(base, {**plan.fixed, **tried}), PARAMS_FILE)


def first_tried(plan: Plan) -> dict[str, Any]:
    """The first value, or the lowest, of each param that is searched."""
    return {name: _ends(values)[0] for name, values in plan.space.items()}


def shared_params(plan: Plan, base: Params) -> dict[str, str]:
    """What all trials share of ``data``, ``model`` and ``train``, as MLflow shows it."""
    params = flat_params(trial_params(plan, base, first_tried(plan)), *_FIXED)
    return {name: value for name, value in params.items() if name not in plan.space}


def _wrong_names(content: Mapping[str, Any], base: Params) -> Iterator[str]:
    named = {where: names if isinstance(names := content.get(where), dict) else {} for where in _SECTIONS}
    for where, names in named.items():
        sections = _SECTIONS[where]
        known = param_values(base, *sections)
        for name in map(str, names):
            if where == "space" and name in _NEVER:
                yield f"space: {name} cannot be searched: {_NEVER[name]}"
            elif name.split(".")[0] not in sections:
                yield f"{where}: {name} is not a param of {' or '.join(sections)}, and no other can be {_VERB[where]}"
            elif name not in known:
                section, _, key = name.rpartition(".")
                if inner := [one for one in known if one.startswith(f"{name}.")]:
                    yield f"{where}: {name} is a section; give one of its params: {', '.join(inner)}"
                    continue
                yield f"{where}: {name} is no param; {suggestion(Params, section, key)}"
    for name in named["space"].keys() & named["fixed"].keys():
        yield f"{name} stands under fixed and under space; take one out"


_VERB = {"fixed": "fixed", "space": "searched"}


def _wrong_ranges(plan: Plan, base: Params) -> Iterator[str]:
    known = param_values(base, *SEARCHED)
    for name, values in plan.space.items():
        wrong = _wrong_list(values) if isinstance(values, list) else _wrong_range(values, known[name])
        if wrong:
            yield f"space: {name} {wrong}"


def _wrong_list(values: list[Any]) -> str:
    if not values:
        return "has no values; give some, or take it out"
    return f"has a value twice: {shown(values)}" if len({repr(value) for value in values}) < len(values) else ""


def _wrong_range(values: Range, known: object) -> str:
    """What is wrong with ``values`` for a param whose value is ``known``; empty where nothing is."""
    if isinstance(known, bool) or not isinstance(known, int | float):
        return f"is no number: give a list of values, such as [{str(known).lower()}]"
    if isinstance(known, int) and not (isinstance(values.low, int) and isinstance(values.high, int)):
        return f"is a whole number: so must low {values.low} and high {values.high} be"
    if values.low >= values.high:
        return f"has low {values.low}, which is not below high {values.high}; swap them, or put one under fixed"
    if values.log and values.low <= 0:
        return f"has low {values.low}, which has no logarithm; set it above 0, or log to false"
    return ""


def _as_param(values: list[Any] | Range, known: object) -> list[Any] | Range:
    """A range from 1 to 3 for a param that is a fraction has all between them, not 1, 2 and 3."""
    if isinstance(values, Range) and isinstance(known, float):
        return values.model_copy(update={"low": float(values.low), "high": float(values.high)})
    return values


def _refuse_wrong_values(plan: Plan, base: Params, path: Path) -> None:
    """Raise UserError for what the params' own limits refuse: each value and bound, and each pair of them.

    Params that depend on each other are looked at in pairs, so that no trial is spent to find that out.
    """
    ends = {name: _ends(values) for name, values in plan.space.items()}
    first = first_tried(plan)
    for name, values in ends.items():
        for value in values:
            checked = check_params(with_values(base, {**plan.fixed, **first, name: value}), path)
            if not checked.data.validation_size:
                raise UserError(f"{path}: data.validation_size is 0, and validation images choose; hold some out")
    for (one, some), (other, others) in combinations(ends.items(), 2):
        for value, another in product(some, others):
            try:
                check_params(with_values(base, {**plan.fixed, **first, one: value, other: another}), path)
            except UserError as error:
                raise UserError(f"{error} (the space has {one}: {value} with {other}: {another})") from None


def _ends(values: list[Any] | Range) -> list[Any]:
    return values if isinstance(values, list) else [values.low, values.high]


def schema() -> dict[str, Any]:
    """The JSON schema of a sweep's file, every param that may stand there with its own limits."""
    whole, params = Plan.model_json_schema(), Params.model_json_schema()
    searched = {name: limits for name, limits in _limits(params, SEARCHED) if name not in _NEVER}
    space = {
        name: {"anyOf": [{"type": "array", "items": limits, "minItems": 1}, *_range(limits)]}
        for name, limits in searched.items()
    }
    for key, properties in (("fixed", dict(_limits(params, _FIXED))), ("space", space)):
        whole["properties"][key] |= {"properties": properties, "additionalProperties": False}
    return whole


def _range(limits: dict[str, Any]) -> list[dict[str, Any]]:
    """A range whose bounds have the ``limits`` of its param; none where that is no number."""
    if limits.get("type") not in ("number", "integer"):
        return []
    return [{"allOf": [{"$ref": "#/$defs/Range"}], "properties": {"low": limits, "high": limits}}]


def _limits(schema: dict[str, Any], sections: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema of every param of ``sections``, by its dotted name."""
    for section in sections:
        definition = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
        yield from _properties(schema, section, definition)


def _properties(schema: dict[str, Any], prefix: str, section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, limits in section["properties"].items():
        name = f"{prefix}.{key}"
        if "$ref" in limits:
            yield from _properties(schema, name, schema["$defs"][limits["$ref"].rpartition("/")[2]])
        else:
            yield name, limits


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
