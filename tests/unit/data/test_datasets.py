import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_tensor

from lenet5.data.datasets import Split, Splits, load_splits, load_test, load_without_test, to_float
from lenet5.data.fashion_mnist import SHA256, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, is_verified
from lenet5.errors import UserError
from lenet5.files import digest
from lenet5.params import DataParams

CPU = torch.device("cpu")
TRAINING, TEST = 50, 20
TEST_FROM = 100  # the number of the first test image


def idx_files(first: int, size: int) -> tuple[bytes, bytes]:
    """Images that carry their own number in their first pixel, and labels that can be told from it."""
    numbers = range(first, first + size)
    images = b"".join(bytes([number, *[255 - number] * 783]) for number in numbers)
    labels = bytes(number % 10 for number in numbers)
    return struct.pack(">4i", 2051, size, 28, 28) + images, struct.pack(">2i", 2049, size) + labels


@pytest.fixture
def raw_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    images, labels = idx_files(0, TRAINING)
    test_images, test_labels = idx_files(TEST_FROM, TEST)
    files = {TRAIN_IMAGES: images, TRAIN_LABELS: labels, TEST_IMAGES: test_images, TEST_LABELS: test_labels}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        monkeypatch.setitem(SHA256, name, digest(content))
    return tmp_path


def load(raw_dir: Path, **changes: Any) -> Splits:
    params = {"validation_size": 15, "train_sample": 10, "split_seed": 0} | changes
    return load_splits(raw_dir, DataParams.model_validate(params), CPU)


def numbers(split: Split | None) -> list[int]:
    assert split is not None
    return split.images[:, 0, 0].tolist()


def test_every_image_is_there_once_with_its_own_label(raw_dir: Path) -> None:
    splits = load(raw_dir)
    assert sorted(numbers(splits.train) + numbers(splits.validation)) == list(range(TRAINING))
    assert numbers(splits.test) == list(range(TEST_FROM, TEST_FROM + TEST))
    for split in (splits.train, splits.train_sample, splits.validation, splits.test):
        assert split is not None
        assert split.labels.tolist() == [number % 10 for number in numbers(split)]
        assert split.images.shape == (len(split), 28, 28)
        assert split.images[:, 1, 0].tolist() == [255 - number for number in numbers(split)]
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize("held_out", [1, 15, TRAINING - 1])
def test_validation_images_are_never_trained_on(raw_dir: Path, held_out: int) -> None:
    splits = load(raw_dir, validation_size=held_out)
    assert len(numbers(splits.validation)) == held_out
    assert len(splits.train) == TRAINING - held_out
    assert not set(numbers(splits.validation)) & set(numbers(splits.train))


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (10, 10), (35, 35), (60_000, 35)])
def test_the_training_sample_is_of_training_images(raw_dir: Path, asked: int, got: int) -> None:
    splits = load(raw_dir, train_sample=asked)
    assert len(set(numbers(splits.train_sample))) == got
    assert set(numbers(splits.train_sample)) <= set(numbers(splits.train))


def test_the_split_seed_alone_decides_which_images_are_held_out(raw_dir: Path) -> None:
    first, again, other = (numbers(load(raw_dir, split_seed=seed).validation) for seed in (1, 1, 2))
    assert first == again
    assert set(first) != set(other)
    assert first != list(range(15)), "the first images of the file are no random sample"


def test_without_validation_images_all_train(raw_dir: Path) -> None:
    splits = load(raw_dir, validation_size=0)
    assert splits.validation is None
    assert sorted(numbers(splits.train)) == list(range(TRAINING))
    assert list(splits.measured()) == ["train", "test"]


def test_what_is_measured_is_the_sample_the_validation_and_the_test_images(raw_dir: Path) -> None:
    splits = load(raw_dir)
    assert list(splits.measured()) == ["train", "validation", "test"]
    assert splits.measured()["train"] is splits.train_sample
    assert splits.measured()["validation"] is splits.validation
    assert splits.measured()["test"] is splits.test


def test_without_test_images_their_files_need_not_even_be_there(raw_dir: Path) -> None:
    whole = load(raw_dir)
    for name in (TEST_IMAGES, TEST_LABELS):
        (raw_dir / name).unlink()
    params = DataParams(validation_size=15, train_sample=10, split_seed=0)
    splits = load_without_test(raw_dir, params, CPU)
    assert list(splits.measured()) == ["train", "validation"]
    assert torch.equal(splits.train.images, whole.train.images)


def test_taken_images_are_copies(raw_dir: Path) -> None:
    everything = load_test(raw_dir)
    part = everything.take(torch.tensor([2, 0]))
    part.images.zero_()
    assert numbers(everything)[:3] == [100, 101, 102]
    assert part.labels.tolist() == [2, 0]
    assert len(part.to(CPU)) == len(part) == 2


@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
@pytest.mark.parametrize("place", [0, 12, -1])
def test_one_changed_byte_is_refused(raw_dir: Path, name: str, place: int) -> None:
    content = bytearray((raw_dir / name).read_bytes())
    content[place] ^= 1
    (raw_dir / name).write_bytes(content)
    assert not is_verified(raw_dir / name)
    with pytest.raises(UserError, match=rf"{name}: not what the stage download left .*`dvc repro download` mends it"):
        load(raw_dir)


def test_a_cut_file_is_refused(raw_dir: Path) -> None:
    (raw_dir / TEST_IMAGES).write_bytes((raw_dir / TEST_IMAGES).read_bytes()[:-100])
    with pytest.raises(UserError, match="not what the stage download left"):
        load_test(raw_dir)


@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
def test_a_missing_file_is_told_with_what_fetches_it(raw_dir: Path, name: str) -> None:
    assert is_verified(raw_dir / name)
    (raw_dir / name).unlink()
    assert not is_verified(raw_dir / name)
    with pytest.raises(UserError, match=f"{name}: not found; `dvc repro download` makes it"):
        load(raw_dir)


def test_to_float_is_what_torchvision_does() -> None:
    image = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    assert set(image.ravel()) == set(range(256))
    batch = to_float(torch.from_numpy(image)[None])
    assert torch.equal(batch[0], to_tensor(image))
    assert batch.dtype == torch.float32
