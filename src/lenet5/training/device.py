"""The device that trains, and how exactly it computes."""

import os
import re
import sys
import warnings
from dataclasses import dataclass

import torch

from lenet5.errors import UserError
from lenet5.findings import installed
from lenet5.training.cards import NoDriverError, ask_driver

GET_STARTED = "https://pytorch.org/get-started"
TENSOR_CORES_FOR_FLOATS = (8, 0)
"""The compute capability from which a card has bf16 and TF32."""


@dataclass(frozen=True)
class Obstacle:
    """Why PyTorch cannot train on a card, and what to do; whether there is a card to mend that for."""

    reason: str
    remedy: str
    card_is_there: bool = True


def pick_device(name: str) -> torch.device:
    """The device for ``train.device``; ``auto`` takes a GPU when there is one that PyTorch can use.

    Where there is one that it cannot use, ``auto`` says why in a line. Raises UserError where ``cuda`` cannot be had.
    """
    found = obstacle() if name != "cpu" else None
    if found and name == "cuda":
        ways = " or ".join(filter(None, [found.remedy, "set it to auto or cpu"]))
        raise UserError(f"train.device: cuda, but {found.reason}; {ways}")
    if found and found.card_is_there:
        print(f"training on the CPU: {found.reason}; {found.remedy}", file=sys.stderr, flush=True)
    return torch.device("cpu" if found or name == "cpu" else "cuda")


def obstacle() -> Obstacle | None:
    """What keeps PyTorch from training on a card of this machine; None where nothing does."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # what PyTorch warns of is said here, in a line of its own
        if torch.cuda.is_available():
            return _no_code_for_card()
    try:
        driver = ask_driver()
    except NoDriverError:
        driver = None
    if driver is None or not driver.cards:
        return Obstacle("PyTorch finds no CUDA device here", "", card_is_there=False)
    card, needed = driver.cards[0], torch.version.cuda
    if needed is None:
        reason = f"PyTorch {torch.__version__} is a build for CPUs, and here is {card}"
        return Obstacle(reason, f"install the build for CUDA ({GET_STARTED})")
    if driver.cuda < int(needed.split(".")[0]):
        reason = f"the driver {driver.version} of {card} is for CUDA {driver.cuda}, PyTorch needs {needed}"
        return Obstacle(reason, f"install a newer driver, or PyTorch's build for an older CUDA ({GET_STARTED})")
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None and not said:  # of hidden cards it is silent
        return Obstacle(f"CUDA_VISIBLE_DEVICES={visible} hides {card}", "unset that variable")
    why = " ".join(str(said[0].message).split())[:200] if said else "it does not say why"
    return Obstacle(f"PyTorch cannot use {card} ({why})", "see whether `nvidia-smi` is well")


def set_deterministic(deterministic: bool) -> None:
    """Refuse, or allow, operations whose result may differ between two runs on one device."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    # As torch.use_deterministic_algorithms, which also imports torch.compile's modules, for seconds, to tell them so.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # Nothing here reads memory before it is written; filling it would cost a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic


def set_precision(precision: str, device: torch.device) -> None:
    """Allow, or forbid, that GPUs round the factors of float32 products to TF32.

    Raises UserError for tf32 on a CPU, which has none, and for tf32 and bf16 on a card too old for them.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("train.precision: tf32 is for CUDA devices; set it to fp32 or bf16")
    if precision != "fp32" and device.type == "cuda":
        _refuse_old_card(precision)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if precision == "fp32" and device.type == "cuda":
        # torch.compile (2.11 warns, later ones log) would have TF32 instead; params.yaml has decided.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning, r"torch\._inductor\.")


def card_facts(device: torch.device) -> dict[str, str]:
    """What of a card and its libraries can change a training's result, by name; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "card": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": installed("triton") or installed("triton-windows") or "",
    }


def _no_code_for_card() -> Obstacle | None:
    architectures = torch.cuda.get_arch_list()
    capability = torch.cuda.get_device_capability()
    if torch.version.cuda is None or any(_runs(name, capability) for name in architectures) or not architectures:
        return None  # without CUDA it is ROCm, whose architectures have other names
    reason = (
        f"PyTorch {torch.__version__} has no code for {torch.cuda.get_device_name()}, which has compute capability "
        f"{capability[0]}.{capability[1]} (it has {' '.join(architectures)})"
    )
    return Obstacle(reason, f"install a build that has ({GET_STARTED}; older cards are in builds for older CUDAs)")


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``architecture`` runs on a card: sm_* within one generation, compute_* on all later ones."""
    named = re.fullmatch(r"(sm|compute)_(\d+)([a-z]?)", architecture)
    built_for = divmod(int(named[2]), 10) if named else (sys.maxsize, 0)
    if named and named[3] == "a":  # for that very architecture
        return built_for == capability
    return built_for <= capability and bool(named) and (architecture[0] == "c" or built_for[0] == capability[0])


def _refuse_old_card(precision: str) -> None:
    capability = torch.cuda.get_device_capability()
    if capability < TENSOR_CORES_FOR_FLOATS:
        needed, found = (".".join(map(str, one)) for one in (TENSOR_CORES_FOR_FLOATS, capability))
        raise UserError(
            f"train.precision: {precision} needs a card of compute capability {needed}, and "
            f"{torch.cuda.get_device_name()} has {found}; set it to fp32"
        )


if __name__ == "__main__":  # `lenet5 doctor` asks, in a process of its own
    found = obstacle()
    print(f"{found.reason}; {found.remedy}" if found else "")
