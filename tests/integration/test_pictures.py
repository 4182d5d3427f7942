"""FashionMNIST's own images through what reads pictures, and as people might give them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lenet5.data import likeness
from lenet5.data.fashion_mnist import TEST_IMAGES, TRAIN_IMAGES
from lenet5.data.images import to_fashion_mnist
from lenet5.data.likeness import learn, unlikeness, warning

Images = NDArray[np.uint8]


def images_of(path: Path) -> Images:
    return np.frombuffer(path.read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def training(data: Path) -> Images:
    return images_of(data / TRAIN_IMAGES)


@pytest.fixture(scope="module")
def test_images(data: Path) -> Images:
    return images_of(data / TEST_IMAGES)


def test_every_image_of_the_data_set_stays_as_it_is_in_both_polarities(training: Images, test_images: Images) -> None:
    for image in np.concatenate([training, test_images]):
        picture = Image.fromarray(image)
        assert np.array_equal(to_fashion_mnist(picture), image)
        assert np.array_equal(to_fashion_mnist(ImageOps.invert(picture)), image)


@pytest.mark.parametrize("margin", [1, 2, 5])
def test_with_a_margin_nearly_all_of_them_do_and_the_rest_is_moved_by_a_pixel(test_images: Images, margin: int) -> None:
    changed = 0
    for image in test_images:
        found = to_fashion_mnist(Image.fromarray(np.pad(image, margin)))
        changed += not np.array_equal(found, image)
        assert np.count_nonzero(found) == np.count_nonzero(image) or max(np.ptp(np.nonzero(image), axis=1)) < 26
    assert changed < 0.03 * len(test_images)


def test_the_measure_of_likeness_is_that_of_the_training_images(
    training: Images, test_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = [unlikeness(image) for image in test_images[:300]]
    known = learn(training)
    monkeypatch.setattr(likeness, "_known", lambda: known)
    np.testing.assert_allclose(committed, [unlikeness(image) for image in test_images[:300]], atol=0.01)


def test_one_in_a_hundred_held_out_images_is_called_unlike(test_images: Images) -> None:
    assert np.mean([bool(warning(unlikeness(image))) for image in test_images]) == pytest.approx(0.01, abs=0.005)


def negated(image: Images) -> Images:
    return 255 - image


def shuffled(image: Images) -> Images:
    return np.random.default_rng(0).permutation(image.ravel()).reshape(28, 28)


def specks(image: Images) -> Images:
    keep = np.random.default_rng(int(image.sum())).random(image.shape) > 0.98
    return np.where(keep, image, 0).astype(np.uint8)


@pytest.mark.parametrize(("change", "told"), [(negated, 0.99), (shuffled, 0.99), (specks, 0.9)])
def test_images_that_are_no_garments_any_more_are_told(
    test_images: Images, change: Callable[[Images], Images], told: float
) -> None:
    assert np.mean([bool(warning(unlikeness(change(image)))) for image in test_images[:500]]) > told
