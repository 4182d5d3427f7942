from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lenet5.network.convolution import Array, convolve2d, corr2d, output_size, pool2d, receptive_field

LENET = [(5, 1), (2, 2), (5, 1), (2, 2)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, int, int]:
    padding, stride = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    image = [draw(st.integers(1, 9)) for _ in range(2)]
    kernel = [draw(st.integers(1, size + 2 * padding)) for size in image]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.normal(size=image), rng.normal(size=kernel), padding, stride


def correlate_by_hand(image: Array, kernel: Array, padding: int, stride: int) -> Array:
    padded = np.pad(image, padding)
    (height, width), (h, w) = padded.shape, kernel.shape
    return np.array(
        [
            [(padded[i : i + h, j : j + w] * kernel).sum() for j in range(0, width - w + 1, stride)]
            for i in range(0, height - h + 1, stride)
        ]
    )


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


@given(cases())
def test_corr2d_is_the_double_loop_and_pytorchs_conv2d(case: tuple[Array, Array, int, int]) -> None:
    image, kernel, padding, stride = case
    response = corr2d(*case)
    np.testing.assert_allclose(response, correlate_by_hand(*case), atol=1e-12)
    torchs = F.conv2d(tensor(image), tensor(kernel), padding=padding, stride=stride)[0, 0]
    np.testing.assert_allclose(response, torchs.numpy(), atol=1e-12)


@given(cases())
def test_convolve2d_is_conv2d_with_the_kernel_flipped_both_ways(case: tuple[Array, Array, int, int]) -> None:
    image, kernel, padding, stride = case
    torchs = F.conv2d(tensor(image), tensor(kernel).flip(2, 3), padding=padding, stride=stride)[0, 0]
    np.testing.assert_allclose(convolve2d(*case), torchs.numpy(), atol=1e-12)


def test_convolving_one_bright_pixel_gives_the_kernel_and_correlating_gives_it_flipped() -> None:
    pixel = np.zeros((3, 3))
    pixel[1, 1] = 1
    kernel = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(convolve2d(pixel, kernel, padding=1), kernel)
    np.testing.assert_array_equal(corr2d(pixel, kernel, padding=1), kernel[::-1, ::-1])


@pytest.mark.parametrize(("reduce", "torchs"), [(np.max, F.max_pool2d), (np.mean, F.avg_pool2d)])
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_pool2d_is_pytorchs_pooling(
    reduce: Any, torchs: Any, height: int, width: int, size: int, stride: int, seed: int
) -> None:
    size = min(size, height, width)
    image = np.random.default_rng(seed).normal(size=(height, width))
    expected = torchs(tensor(image), size, stride)[0, 0].numpy()
    np.testing.assert_allclose(pool2d(image, size, stride, reduce), expected, atol=1e-12)


def test_pooling_by_hand() -> None:
    image = np.array([[1.0, 2.0, 5.0], [3.0, 4.0, 0.0], [9.0, 9.0, 9.0]])
    np.testing.assert_array_equal(pool2d(image, 2, 1, np.max), [[4, 5], [9, 9]])
    np.testing.assert_array_equal(pool2d(image, 2, 2, np.mean), [[2.5]])


@given(cases())
def test_output_size_is_the_shape_of_the_response(case: tuple[Array, Array, int, int]) -> None:
    image, kernel, padding, stride = case
    sizes = [output_size(w, k, padding, stride) for w, k in zip(image.shape, kernel.shape, strict=True)]
    assert corr2d(*case).shape == tuple(sizes)


@pytest.mark.parametrize(
    ("before", "kernel", "padding", "stride", "after"),
    [(28, 5, 2, 1, 28), (28, 2, 0, 2, 14), (14, 5, 0, 1, 10), (10, 2, 0, 2, 5)],
    ids=["C1", "S2", "C3", "S4"],
)
def test_sizes_of_lenets_layers(before: int, kernel: int, padding: int, stride: int, after: int) -> None:
    assert output_size(before, kernel, padding, stride) == after


@pytest.mark.parametrize("kernel", [(5, 1), (1, 5), (5, 5)])
def test_a_kernel_larger_than_the_image_is_refused(kernel: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="kernel of 5 does not fit into 4 pixels"):
        corr2d(np.ones((4, 4)), np.ones(kernel))
    with pytest.raises(ValueError, match="does not fit"):
        convolve2d(np.ones((4, 4)), np.ones(kernel))


def test_a_pool_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pool2d(np.ones((4, 3)), 4, 1, np.max)


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_impossible_arithmetic_is_refused(kernel: int, padding: int, stride: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        output_size(4, kernel, padding, stride)


def test_a_kernel_fits_once_the_padding_makes_room() -> None:
    with pytest.raises(ValueError, match="with padding 1"):
        output_size(2, 5, padding=1)
    assert output_size(2, 5, padding=2) == 2


@pytest.mark.parametrize(("depth", "field"), [(0, 1), (1, 5), (2, 6), (3, 14), (4, 16)])
def test_receptive_fields_of_lenets_layers(depth: int, field: int) -> None:
    assert receptive_field(LENET[:depth]) == field


def test_without_pooling_the_second_convolution_sees_less() -> None:
    assert receptive_field([(5, 1), (5, 1)]) == 9 < receptive_field(LENET[:3])


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=3))
def test_receptive_field_spans_the_pixels_that_an_output_depends_on(stack: list[tuple[int, int]]) -> None:
    pixels = torch.zeros(1, 1, 80, requires_grad=True)
    output = pixels
    for kernel, stride in stack:
        output = F.conv1d(output, torch.ones(1, 1, kernel), stride=stride)
    (gradient,) = torch.autograd.grad(output[0, 0, 0], pixels)
    seen = gradient[0, 0].nonzero()
    assert receptive_field(stack) == int(seen.max() - seen.min()) + 1
