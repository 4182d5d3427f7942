"""The NVIDIA cards of this machine as their driver names them. Asks NVML, not PyTorch."""

from dataclasses import dataclass
from importlib.util import find_spec


class NoDriverError(Exception):
    """No driver answers; the text says why."""


@dataclass(frozen=True)
class Driver:
    """The driver's version, the CUDA (its first number) it is new enough for, and the names of its cards."""

    version: str
    cuda: int
    cards: tuple[str, ...]


def ask_driver() -> Driver:
    """What the driver says. Raises NoDriverError where there is none, or nothing to ask it with."""
    if not find_spec("pynvml"):
        raise NoDriverError("the package nvidia-ml-py is missing")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDriverError(str(error)) from None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return Driver(
            pynvml.nvmlSystemGetDriverVersion(),
            pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000,
            tuple(pynvml.nvmlDeviceGetName(handle) for handle in handles),
        )
    except pynvml.NVMLError as error:  # a card that fell off the bus, say
        raise NoDriverError(str(error)) from None
    finally:
        pynvml.nvmlShutdown()
