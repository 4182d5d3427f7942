"""YAML as DVC reads it: the one meaning that a file has here."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lenet5.errors import UserError, shown


def parse(text: bytes, path: Path) -> Any:
    """What ``text``, the content of ``path``, holds, as DVC reads it (YAML 1.2, UTF-8).

    Raises UserError where it is no YAML, or holds a number that readers of YAML 1.1 take for another.
    """
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}; DVC reads nothing but UTF-8, save it as that") from None
    try:
        others = yaml.load(decoded, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
        content = read_yaml(decoded)
    except (yaml.MarkedYAMLError, MarkedYAMLError) as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{place}: {error.problem}") from None
    except (yaml.YAMLError, YAMLError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except (ValueError, RecursionError, LookupError, AttributeError) as error:  # PyYAML lets all of them through
        raise UserError(f"{path}: a value cannot be read: {error}") from None
    with suppress(RecursionError):  # a list that holds itself, which is no param
        _refuse_ambiguity(content, others, str(path))
    return content


def read_yaml(text: str) -> Any:
    """What ``text`` holds, as DVC reads it."""
    return YAML(typ="safe").load(text)


def _refuse_ambiguity(content: object, others: object, where: str) -> None:
    """Raise UserError at the first number of ``content`` that is not what it is in ``others``, read as YAML 1.1.

    A string needs no such care: no param may be both a string and what YAML 1.1 makes of some (`on`, `1:30`).
    """
    if isinstance(content, dict) and isinstance(others, dict):
        for key in content.keys() & others.keys():
            _refuse_ambiguity(content[key], others[key], f"{where}: {key}" if ": " not in where else f"{where}.{key}")
    elif isinstance(content, list) and isinstance(others, list):
        for number, (one, other) in enumerate(zip(content, others, strict=True)):
            _refuse_ambiguity(one, other, f"{where}.{number}")
    elif not isinstance(content, str) and not _same(content, others):
        raise UserError(f"{where}: {shown(content)} to DVC, {shown(others)} to others; write {shown(content)}")


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and (one == other or one != one)  # NaN is not itself


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader (YAML 1.1) that refuses a key given twice and reads 1e-3 as the number it is in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # a list or mapping, which PyYAML refuses as a key
            key = key_node.value
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
