"""What a card refuses while it computes, said in a line with the setting that avoids it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lenet5.errors import UserError

ELSEWHERE = "set train.device: cpu"
OUTSIDE_A_GRAPH = "set train.engine: eager, which records nothing and needs less memory, or train.device: cpu"

# What PyTorch says -> what it means; its libraries know no other words for a full memory.
_MEANING = {
    "out of memory": "the card's memory is full",
    "_STATUS_ALLOC_FAILED": "the card's memory is full",
    "_STATUS_NOT_INITIALIZED": "the card's memory is full, or its driver is not well (see `nvidia-smi`)",
    "busy or unavailable": "the card is busy, or another process has it for itself (`nvidia-smi` shows which)",
    "no kernel image": "PyTorch has no code for this card",
    "driver version is insufficient": "the driver is too old for PyTorch",
    "ECC error": "the card's memory is faulty (see `nvidia-smi`)",
    "device is lost": "the card does not answer any more (see `nvidia-smi`)",
}
_LONGEST = 200


class CardError(UserError):
    """A card that could not go on. What it holds is undefined from then on: the process has to end."""


@contextmanager
def card_errors(remedy: str = ELSEWHERE, *, capturing: bool = False) -> Iterator[None]:
    """Raise CardError, with ``remedy``, for what a card refuses; anything else passes, it is a mistake of the code.

    While ``capturing``, whatever PyTorch raises is a refusal: the very same steps have just run uncaptured.
    """
    try:
        yield
    except RuntimeError as error:
        chain = _chain(error)
        meaning, said = _meaning(chain), _sentence(chain[0])
        if meaning is None and not capturing:
            raise
        why = f"{meaning} ({said})" if meaning else said
        doing = "recording the steps as a CUDA graph failed" if capturing else "training on the card failed"
        raise CardError(f"{doing}: {why}; {remedy}") from error


def _chain(error: BaseException) -> list[BaseException]:
    """``error`` after everything it was raised in the wake of: ending a capture that failed raises once more."""
    before = error.__context__
    return [*(_chain(before) if before else []), error]


def _meaning(chain: list[BaseException]) -> str | None:
    first = chain[0]
    of_a_card = isinstance(first, torch.OutOfMemoryError | torch.AcceleratorError)
    if of_a_card or re.search("CUDA|CUDNN|CUBLAS", str(first)):
        for fragment, meaning in _MEANING.items():
            if fragment in str(first):
                return meaning
    if any(type(error).__module__.startswith(("torch._inductor", "triton.")) for error in chain):
        return "compiling for it failed"
    return None


def _sentence(error: BaseException) -> str:
    """The first line, and of that the part before PyTorch's advice."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return line.partition(" Including non-PyTorch memory")[0].partition(" Of the allocated memory")[0][:_LONGEST]
