"""Whether a training that still runs learns anything."""

from lenet5.params import Params
from lenet5.results.verdict import at_chance, what_to_try

PATIENCE = 5
"""The epochs at chance after which that is said; a sigmoid network may need the first of them to get going."""


class ChanceWatch:
    """Follows a training, epoch after epoch."""

    def __init__(self) -> None:
        self._since: int | None = None

    def at_chance_since(self, epoch: int, train_accuracy: float) -> int | None:
        """The first of the epochs on end that are at chance, where ``PATIENCE`` are; None otherwise."""
        if not at_chance(train_accuracy):
            self._since = None
        elif self._since is None:
            self._since = epoch
        return self._since if self._since is not None and epoch - self._since >= PATIENCE - 1 else None


def stuck(how_long: str, params: Params) -> str:
    """A training that has been at chance for ``how_long``, and what to try."""
    return f"at chance {how_long}, right on one image in ten. {what_to_try(params)}"
