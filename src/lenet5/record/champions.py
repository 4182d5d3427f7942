"""Who is champion, who was, when and why: the alias of the registered model, and its tags, one for each change."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.record.addresses import store_uri
from lenet5.record.lineage import user
from lenet5.record.promotion import CHAMPION
from lenet5.record.store import reader, user_errors

_ELSEWHERE = "the alias was moved without `lenet5`: no reason on record"


@dataclass(frozen=True)
class Reign:
    """A version that became champion: ``since`` when (UTC) and why. Its ``accuracy`` on the test images."""

    since: str
    version: str
    reason: str
    accuracy: str
    is_champion: bool


def history(params: Params) -> list[Reign]:
    """Every change of champion, oldest first. Raises UserError where the store has no such model."""
    with _model(params) as (client, name):
        return _history(client, name)


def move_back(params: Params, why: str) -> Reign:
    """Make the version champion that was so before the one that is. Raises UserError where there is none."""
    with _model(params) as (client, name):
        there = {str(one.version) for one in client.search_model_versions(f"name = '{name}'")}
        current = client.get_registered_model(name).aliases.get(CHAMPION)
        earlier = [one.version for one in _history(client, name) if one.version in there - {str(current)}]
        if not earlier:
            raise UserError(
                f"{name}: no other champion before that is still there; `lenet5 champion VERSION` takes any"
            )
        return _move(
            client, name, earlier[-1], why or f"back from {f'version {current}' if current else 'no champion'}"
        )


def move_to(params: Params, version: str, why: str) -> Reign:
    """Make ``version`` champion. Raises UserError where there is no such version."""
    with _model(params) as (client, name):
        return _move(client, name, version, why or "chosen")


@contextmanager
def _model(params: Params) -> Iterator[tuple[MlflowClient, str]]:
    uri = store_uri()
    with user_errors(uri, then="; no alias was moved"):
        yield reader(uri), params.register_.model_name


def _move(client: MlflowClient, name: str, version: str, why: str) -> Reign:
    client.get_model_version(name, version)
    crown(client, name, version, f"{why} (by hand, {user() or 'somebody'})")
    return _history(client, name)[-1]


def _history(client: MlflowClient, name: str) -> list[Reign]:
    """The reigns on record; and one of unknown beginning where the alias was moved elsewhere, in MLflow's UI say."""
    versions = {str(one.version): one for one in client.search_model_versions(f"name = '{name}'")}
    model = client.get_registered_model(name)
    changes = sorted(_changes(model.tags))
    current = model.aliases.get(CHAMPION)
    if elsewhere := _unrecorded(model, changes):
        changes.append(("?", elsewhere, _ELSEWHERE))
    last = len(changes) - 1
    return [
        Reign(
            since=since,
            version=version,
            reason=reason,
            accuracy=versions[version].tags.get("test_accuracy", "-") if version in versions else "deleted",
            is_champion=place == last and str(current) == version,
        )
        for place, (since, version, reason) in enumerate(changes)
    ]


def _changes(tags: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Since when which version was champion and why, of the model's ``tags``; a person's own may be called alike."""
    for key, value in tags.items():
        with suppress(ValueError, KeyError, TypeError):
            if key.startswith(f"{CHAMPION} "):
                entry = json.loads(value)
                yield key.removeprefix(f"{CHAMPION} "), entry["version"], entry["reason"]


def crown(client: MlflowClient, name: str, version: str, reason: str) -> None:
    """Make ``version`` of the model ``name`` champion, with the reason on record."""
    model = client.get_registered_model(name)
    current = _unrecorded(model, sorted(_changes(model.tags)))
    if current not in (None, version):  # or `move_back` would not find it
        _note(client, name, str(current), _ELSEWHERE)
    # Before the alias: who is killed between leaves a reason too many, not a champion without one.
    _note(client, name, version, reason)
    client.set_registered_model_alias(name, CHAMPION, version)


def _unrecorded(model: RegisteredModel, changes: Sequence[tuple[str, str, str]]) -> str | None:
    """The champion, if the latest of ``changes`` did not make it so."""
    current = model.aliases.get(CHAMPION)
    return None if current is None or (changes and changes[-1][1] == str(current)) else str(current)


def _note(client: MlflowClient, name: str, version: str, reason: str) -> None:
    entry = json.dumps({"version": version, "reason": reason})
    client.set_registered_model_tag(name, f"{CHAMPION} {now()}", entry)


def champion_of(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that carries the alias now, if any."""
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return client.get_model_version(name, str(number)) if number is not None else None


def aliases_of(client: MlflowClient, version: ModelVersion) -> list[str]:
    """What the version carries now."""
    aliases = client.get_registered_model(version.name).aliases
    return sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))


def now() -> str:
    """The time as the record writes it: UTC, fine enough to tell two changes apart."""
    return datetime.now(UTC).isoformat(" ", "microseconds").removesuffix("+00:00")
