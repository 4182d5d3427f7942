"""Functions of CUDA tensors recorded once and replayed with one launch, however many kernels they hold."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lenet5.training.card_errors import OUTSIDE_A_GRAPH, card_errors

WARM_UPS = 2  # compilation, library handles and workspaces come before the recording

Recorder = Callable[[Callable[[], Tensor], Callable[[], object], Sequence[Tensor]], tuple[Callable[[], None], Tensor]]
"""(function, warm_up, state) -> (replay, result): what ``record`` does."""


def record(
    function: Callable[[], Tensor], warm_up: Callable[[], object], state: Sequence[Tensor]
) -> tuple[Callable[[], None], Tensor]:
    """Capture ``function`` in a CUDA graph; ``replay()`` computes its ``result`` anew, in the same memory.

    ``warm_up`` uses every kernel that ``function`` uses, in less time. ``state`` is every tensor that the two change:
    after the warm-up it is put back, in place, and so is the random stream, whose numbers are fresh at each replay.
    Raises CardError where the card cannot: after a capture that failed nothing on it can be relied on.
    """
    saved = [tensor.detach().clone() for tensor in state]
    random = torch.cuda.get_rng_state()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with card_errors(OUTSIDE_A_GRAPH), torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            warm_up()
    torch.cuda.current_stream().wait_stream(side)
    with torch.no_grad():
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread, the one that imports mlflow say, may do what it likes in the meantime.
    with (
        card_errors(OUTSIDE_A_GRAPH, capturing=True),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        result = function()
    torch.cuda.set_rng_state(random)
    return graph.replay, result


class Replayed:
    """Calls ``function`` through recordings, one for each shape of its arguments, made when it first comes.

    ``state()`` gives every tensor that ``function`` changes; ``warm_up``, of the same arguments, is as for ``record``.
    All tensors that ``function`` reaches but its arguments must stay where they are until ``forget``.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        warm_up: Callable[..., object],
        state: Callable[[], Sequence[Tensor]],
        recorder: Recorder,
    ) -> None:
        self._function, self._warm_up, self._state, self._recorder = function, warm_up, state, recorder
        self._recordings: dict[tuple[torch.Size, ...], tuple[list[Tensor], Callable[[], None], Tensor]] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        """What ``function`` gives for ``arguments``, in memory of its own."""
        shapes = tuple(argument.shape for argument in arguments)
        if shapes not in self._recordings:
            buffers = [argument.clone() for argument in arguments]
            function, warm_up = partial(self._function, *buffers), partial(self._warm_up, *buffers)
            self._recordings[shapes] = (buffers, *self._recorder(function, warm_up, self._state()))
        buffers, replay, result = self._recordings[shapes]
        for buffer, argument in zip(buffers, arguments, strict=True):
            buffer.copy_(argument)
        replay()
        return result.clone()

    def forget(self) -> None:
        """Drop the recordings: the tensors they point at have been replaced."""
        self._recordings.clear()
