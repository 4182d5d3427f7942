"""Code for a card, generated and compiled where there is none."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import REPOSITORY

pytestmark = pytest.mark.skipif(
    not find_spec("triton") or torch.version.cuda is None, reason="PyTorch is no build for CUDA with Triton"
)

soak = pytest.mark.soak
# The kernels that Triton makes of a step, at most.
KERNELS = [
    pytest.param("the tutorial's", 20, id="tutorial"),
    pytest.param("momentum and max", 20, id="momentum-max", marks=soak),
    pytest.param("AdamW and the paper's C3", 23, id="adamw-paper", marks=soak),
    pytest.param("dropout, augmented and smoothed", 20, id="dropout-augmented", marks=soak),
    # Each class counts in the loss of mixed labels, which is summed in a kernel of its own.
    pytest.param("mixed, augmented and smoothed", 21, id="mixed", marks=soak),
    pytest.param("the tutorial's x 8", 27, id="replicas", marks=soak),
]
CONVOLUTIONS = {"convolution": 2, "aten.convolution_backward.default": 2}
PRODUCTS = {"mm", "addmm", "bmm"}


def generated(recipe: str, capability: str, caches: Path) -> dict[str, Any]:
    """What cuda_code.py says, with no card in sight."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "bench")]), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_CACHE_DIR": str(caches), "TRITON_CACHE_DIR": str(caches),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.cuda_code", capability, recipe],
        cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("capability", ["8.0", "9.0"])
@pytest.mark.parametrize(("recipe", "most"), KERNELS)
def test_a_step_is_compiled_for_a_card_whole_without_atomics_and_with_nothing_chosen_by_timing(
    report: Callable[[str], None], tmp_path: Path, recipe: str, most: int, capability: str
) -> None:
    made = generated(recipe, capability, tmp_path)
    calls = Counter(made["calls"])
    others = {name: count for name, count in calls.items() if name not in PRODUCTS}
    report(f"a step for capability {capability}, {recipe}: {len(made['launches'])} kernels, {calls.total()} calls")
    assert set(made["launches"]) == {kernel["name"] for kernel in made["kernels"]}
    assert 0 < len(made["launches"]) <= most
    assert others == CONVOLUTIONS, "cuDNN's; what else is called is what inductor would not compile"
    assert calls.total() - sum(others.values()) == 9, "three linear layers: one forward and two back"
    assert made["on_cpu"] == []
    for kernel in made["kernels"]:
        assert not kernel["atomics"], kernel["name"]
        assert {cubin["arch"] for cubin in kernel["cubins"]} == {int(capability.replace(".", ""))}
        assert all(cubin["bytes"] for cubin in kernel["cubins"])
        # Pointwise kernels compute the same however they are laid out; sums may not.
        assert len(kernel["cubins"]) == 1 or kernel["name"].startswith("triton_poi"), kernel["name"]
