import numpy as np
import pytest
import torch

from lenet5.convolution import corr2d
from lenet5.edge_kernel import EDGE_KERNEL, edge_image, learn_kernel


def test_the_image_is_white_with_a_black_bar() -> None:
    np.testing.assert_array_equal(edge_image(), [[1, 1, 0, 0, 0, 0, 1, 1]] * 6)


def test_the_kernel_answers_at_both_edges_and_nowhere_else() -> None:
    np.testing.assert_array_equal(corr2d(edge_image(), EDGE_KERNEL), [[0, 1, 0, 0, 0, -1, 0]] * 6)


def test_the_transposed_kernel_sees_no_edge() -> None:
    response = corr2d(edge_image(), EDGE_KERNEL.T)
    assert response.shape == (5, 8)
    assert not response.any()


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 2**31 - 1])
def test_gradient_descent_recovers_the_kernel(seed: int) -> None:
    learned = learn_kernel(seed, lr=0.03, max_steps=1000, tolerance=1e-3)
    assert learned.seed == seed
    assert learned.kernel.shape == (1, 2)
    np.testing.assert_allclose(learned.kernel, [[1, -1]], atol=1e-3)
    assert learned.error == np.abs(learned.kernel - [[1, -1]]).max() <= 1e-3
    assert learned.losses == sorted(learned.losses, reverse=True)


def test_it_stops_as_soon_as_the_kernel_is_good_enough() -> None:
    rough, fine = (learn_kernel(0, 0.03, 1000, tolerance) for tolerance in (0.1, 1e-6))
    assert 0 < len(rough.losses) < len(fine.losses) < 1000
    assert fine.error <= 1e-6 < rough.error <= 0.1


def test_too_few_steps_leave_an_error_above_the_tolerance() -> None:
    learned = learn_kernel(0, lr=0.03, max_steps=3, tolerance=1e-3)
    assert len(learned.losses) == 3
    assert learned.error > 1e-3


def test_too_large_a_learning_rate_is_no_success() -> None:
    assert not learn_kernel(0, lr=10, max_steps=1000, tolerance=1e-3).error <= 1e-3


def test_the_seed_alone_decides_the_result() -> None:
    def learn(seed: int) -> list[float]:
        torch.rand(1)
        return learn_kernel(seed, 0.03, 1000, 1e-3).losses

    assert learn(1) == learn(1) != learn(2)


def test_it_leaves_the_random_state_of_training_alone() -> None:
    before = torch.get_rng_state()
    learn_kernel(0, 0.03, 10, 1e-3)
    assert torch.equal(torch.get_rng_state(), before)
