"""Stage kernel_check: learn the edge kernel [1, -1] from data, from several seeds. Under a second.

Training LeNet-5 waits for it: a machine on which gradient descent cannot find two numbers trains nothing.
"""

import pandas as pd

from lenet5.edge_kernel import learn_kernel
from lenet5.errors import UserError
from lenet5.figures import draw_kernel_check
from lenet5.files import atomic_path, write_json
from lenet5.outs import KERNEL_CHECK, KERNEL_CURVES, KERNEL_PICTURE
from lenet5.params import Params
from lenet5.stage import run_stage


def main(params: Params) -> None:
    """Learn a kernel per seed; write kernels, errors, loss curves and a picture, unless one was not recovered."""
    check = params.kernel_check
    learned = [learn_kernel(seed, check.lr, check.max_steps, check.tolerance) for seed in check.seeds]
    for one in learned:
        left, right = one.kernel[0]
        print(f"seed {one.seed}: [{left:+.5f}, {right:+.5f}] after {len(one.losses)} steps, off by {one.error:.1e}")
    missed = [str(one.seed) for one in learned if not one.error <= check.tolerance]
    if missed:
        raise UserError(
            f"seed {', '.join(missed)}: no kernel within {check.tolerance:g} of [1, -1] after {check.max_steps} steps; "
            "raise kernel_check.max_steps, or bring kernel_check.lr nearer to 0.03"
        )
    curves = [(one.seed, step, loss) for one in learned for step, loss in enumerate(one.losses, start=1)]
    with atomic_path(KERNEL_CURVES) as beside:
        pd.DataFrame(curves, columns=["seed", "step", "loss"]).to_csv(beside, index=False)
    draw_kernel_check(KERNEL_PICTURE, learned, check.tolerance)
    largest = max(one.error for one in learned)
    seeds = {
        str(one.seed): {"kernel": one.kernel[0].tolist(), "error": one.error, "steps": len(one.losses)}
        for one in learned
    }
    write_json(KERNEL_CHECK, {"largest_error": largest, "tolerance": check.tolerance, "seeds": seeds})


if __name__ == "__main__":
    run_stage("kernel_check", main)
