"""What the last run of the pipeline left, in one line, and which of it git does not have; `make repro` ends with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lenet5.errors import one_line_errors
from lenet5.files import read_json
from lenet5.outs import HEADLINE, REGISTRATION
from lenet5.record.lineage import changed_files
from lenet5.record.promotion import CHAMPION
from lenet5.results.verdict import accuracy_with_interval, points
from lenet5.workspace import LOCK_FILE

_METRICS = HEADLINE.parent
_LISTED = 6  # files


def summary(
    training: Mapping[str, Any], evaluation: Mapping[str, Any], registered: Mapping[str, Any], page: str
) -> str:
    """Which weights were kept, how good they are, whether they were champion then, and where to look at them."""
    test, images = evaluation["test"], "" if "validation" in evaluation else " to test"
    is_champion = CHAMPION in (registered["alias"] or "").split(", ")
    state = "champion when last registered" if is_champion else f"not champion ({registered['became']} when registered)"
    return (
        f"kept: epoch {training['chosen_epoch']} of {training['epochs']}; "
        f"test accuracy {accuracy_with_interval(test)}, accuracy gap{images} "
        f"{points(evaluation['gap']['accuracy'])} points; {state}; {page}"
    )


def not_in_git(changed: Sequence[str]) -> list[str]:
    """Which results the last commit has otherwise, with what else it has so, and what to do; empty where none."""
    results = [name for name in changed if name == LOCK_FILE.name or Path(name).is_relative_to(_METRICS)]
    if not results:
        return []
    names = results + [name for name in changed if name not in results]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [
        f"changed since the last commit: {', '.join(names[:_LISTED])}{more}",
        "keep results with what made them: git switch --create NAME && git commit --all; docs/workspace.md says more",
    ]


if __name__ == "__main__":
    with one_line_errors("repro"):
        print("\n".join([read_json(REGISTRATION)["summary"], *not_in_git(changed_files())]))
