import numpy as np
import pytest
import torch

from lenet5.network.convolution import Array, corr2d
from lenet5.network.edge_kernel import learn_kernel
from lenet5.network.edges import EDGE_KERNEL, edge_image


def test_the_image_is_white_with_two_black_rectangles_and_a_white_row_between() -> None:
    broken, whole = [1, 1, 0, 0, 0, 0, 1, 1], [1] * 8
    np.testing.assert_array_equal(edge_image(), [broken, broken, whole, broken, broken, broken])


def test_the_kernel_answers_at_vertical_edges_and_nowhere_else() -> None:
    edges, none = [0, 1, 0, 0, 0, -1, 0], [0] * 7
    np.testing.assert_array_equal(corr2d(edge_image(), EDGE_KERNEL), [edges, edges, none, edges, edges, edges])


def test_the_transposed_kernel_answers_above_and_below_the_white_row() -> None:
    none, above, below = [0] * 8, [0, 0, -1, -1, -1, -1, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]
    np.testing.assert_array_equal(corr2d(edge_image(), EDGE_KERNEL.T), [none, above, below, none, none])


@pytest.mark.parametrize("wanted", [EDGE_KERNEL, EDGE_KERNEL.T, 2 * EDGE_KERNEL, np.array([[0.5], [3.0]])])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 2**31 - 1])
def test_gradient_descent_recovers_a_kernel_from_its_response(wanted: Array, seed: int) -> None:
    learned = learn_kernel(wanted, seed, lr=0.02, max_steps=1000, tolerance=1e-3)
    assert learned.seed == seed
    np.testing.assert_allclose(learned.kernel, wanted, rtol=0, atol=1e-3, strict=True)
    assert learned.error == np.abs(learned.kernel - wanted).max() <= 1e-3
    assert learned.losses == sorted(learned.losses, reverse=True)


def test_it_stops_as_soon_as_the_kernel_is_good_enough() -> None:
    rough, fine = (learn_kernel(EDGE_KERNEL, 0, 0.02, 1000, tolerance) for tolerance in (0.1, 1e-6))
    assert 0 < len(rough.losses) < len(fine.losses) < 1000
    assert fine.error <= 1e-6 < rough.error <= 0.1


def test_too_few_steps_leave_an_error_above_the_tolerance() -> None:
    learned = learn_kernel(EDGE_KERNEL, 0, lr=0.02, max_steps=3, tolerance=1e-3)
    assert len(learned.losses) == 3
    assert learned.error > 1e-3


def test_too_large_a_learning_rate_is_no_success() -> None:
    assert not learn_kernel(EDGE_KERNEL, 0, lr=10, max_steps=1000, tolerance=1e-3).error <= 1e-3


def test_the_seed_alone_decides_the_result() -> None:
    def learn(seed: int) -> list[float]:
        torch.rand(1)
        return learn_kernel(EDGE_KERNEL, seed, 0.02, 1000, 1e-3).losses

    assert learn(1) == learn(1) != learn(2)


def test_it_leaves_the_random_state_of_training_alone() -> None:
    before = torch.get_rng_state()
    learn_kernel(EDGE_KERNEL, 0, 0.02, 10, 1e-3)
    assert torch.equal(torch.get_rng_state(), before)
