"""Stage kernel_check: learn the edge kernel [1, -1] and its transpose from data, from several seeds. Under a second.

Training LeNet-5 waits for it: a machine on which gradient descent cannot find two numbers trains nothing.
"""

from beside import run_stage

from collections.abc import Mapping, Sequence

import pandas as pd

from lenet5.errors import UserError
from lenet5.files import atomic_path, write_json
from lenet5.network.edge_kernel import learn_kernel
from lenet5.network.edges import KERNELS, LearnedKernel
from lenet5.outs import KERNEL_CHECK, KERNEL_CURVES, KERNEL_PICTURE
from lenet5.params import KernelCheckParams, Params
from lenet5.results.figures import draw_kernel_check

Learned = Mapping[str, Sequence[LearnedKernel]]
"""One training a seed, by the edges that the kernel finds."""


def main(params: Params) -> None:
    """Learn both kernels from every seed; write them, their loss curves and a picture, unless one was not recovered."""
    check = params.kernel_check
    learned = {
        edges: [learn_kernel(wanted, seed, check.lr, check.max_steps, check.tolerance) for seed in check.seeds]
        for edges, wanted in KERNELS.items()
    }
    show(learned)
    refuse_missed(learned, check)
    with atomic_path(KERNEL_CURVES) as beside:
        curves(learned).to_csv(beside, index=False)
    draw_kernel_check(KERNEL_PICTURE, learned, check.tolerance)
    largest = max(one.error for trainings in learned.values() for one in trainings)
    kernels = {edges: {str(one.seed): entry(one) for one in trainings} for edges, trainings in learned.items()}
    write_json(KERNEL_CHECK, {"largest_error": largest, "tolerance": check.tolerance, **kernels})


def show(learned: Learned) -> None:
    """Print each kernel that was learned, and how fast."""
    for edges, trainings in learned.items():
        print(f"{edges.replace('_', ' ')}, kernel {KERNELS[edges].tolist()}:")
        for one in trainings:
            first, second = one.kernel.flat
            steps = f"after {len(one.losses)} steps, off by {one.error:.1e}"
            print(f"  seed {one.seed}: [{first:+.5f}, {second:+.5f}] {steps}")


def refuse_missed(learned: Learned, check: KernelCheckParams) -> None:
    """Raise UserError where a kernel is further from the wanted one than the tolerance."""
    missed = [
        f"{edges.replace('_', ' ')} from seed {', '.join(seeds)}"
        for edges, trainings in learned.items()
        if (seeds := [str(one.seed) for one in trainings if not one.error <= check.tolerance])
    ]
    if missed:
        raise UserError(
            f"{'; '.join(missed)}: no kernel within {check.tolerance:g} of 1 and -1 after {check.max_steps} steps; "
            "raise kernel_check.max_steps, or bring kernel_check.lr nearer to 0.02"
        )


def curves(learned: Learned) -> pd.DataFrame:
    """The loss before each step, one column a kernel; empty where one needed fewer steps than the other."""
    columns = {
        edges: pd.concat({one.seed: pd.Series(one.losses) for one in trainings}, names=["seed", "step"])
        for edges, trainings in learned.items()
    }
    table = pd.DataFrame(columns).reset_index()
    return table.assign(step=table["step"] + 1)


def entry(one: LearnedKernel) -> dict[str, object]:
    """What the metrics hold of a training."""
    return {"kernel": one.kernel.ravel().tolist(), "error": one.error, "steps": len(one.losses)}


if __name__ == "__main__":
    run_stage("kernel_check", main)
