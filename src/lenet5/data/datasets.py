"""FashionMNIST as tensors, and how its images are divided into what trains, what decides and what reports."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lenet5.data.fashion_mnist import IMAGE_SIZE, SHA256, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from lenet5.files import read_trusted
from lenet5.params import DataParams


@dataclass(frozen=True)
class Split:
    """Images (n, 28, 28) uint8 and labels (n,) int64 on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at ``indices``, copied."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        """The same on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """What is trained on, a fixed sample of it, what decides (None without validation images), what is reported.

    Without test images (None) nothing can be reported, and a search cannot be tempted.
    """

    train: Split
    train_sample: Split
    validation: Split | None
    test: Split | None

    def measured(self) -> dict[str, Split]:
        """The splits on which frozen weights are measured, by the name their figures carry."""
        validation = {"validation": self.validation} if self.validation else {}
        test = {"test": self.test} if self.test else {}
        return {"train": self.train_sample, **validation, **test}


def load_splits(raw_dir: Path, params: DataParams, device: torch.device) -> Splits:
    """Read, verify and divide FashionMNIST. Raises UserError where a file is missing or not the published one."""
    return replace(load_without_test(raw_dir, params, device), test=load_test(raw_dir).to(device))


def load_without_test(raw_dir: Path, params: DataParams, device: torch.device) -> Splits:
    """The 60,000 training images, divided; the files of the test images are not read. Raises as ``load_splits``."""
    everything = Split(_read_images(raw_dir / TRAIN_IMAGES), _read_labels(raw_dir / TRAIN_LABELS))
    order = torch.from_numpy(np.random.default_rng(params.split_seed).permutation(len(everything)))
    held_out, kept = order[: params.validation_size], order[params.validation_size :]
    return Splits(
        train=everything.take(kept).to(device),
        train_sample=everything.take(kept[: params.train_sample]).to(device),
        validation=everything.take(held_out).to(device) if len(held_out) else None,
        test=None,
    )


def load_test(raw_dir: Path) -> Split:
    """Read and verify the 10,000 test images. Raises as ``load_splits``."""
    return Split(_read_images(raw_dir / TEST_IMAGES), _read_labels(raw_dir / TEST_LABELS))


def to_float(images: Tensor) -> Tensor:
    """(B, 28, 28) uint8 -> (B, 1, 28, 28) float32 in [0, 1], what torchvision's ToTensor computes."""
    return images.unsqueeze(1).float() / 255


def _read_images(path: Path) -> Tensor:
    # Four big-endian 32-bit numbers come first: magic, count, rows, columns. The checksum vouches for them.
    pixels = np.frombuffer(_read(path), np.uint8, offset=16)
    return torch.from_numpy(pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE))


def _read_labels(path: Path) -> Tensor:
    return torch.from_numpy(np.frombuffer(_read(path), np.uint8, offset=8)).long()


def _read(path: Path) -> bytearray:
    # PyTorch wants memory that could be written to.
    return bytearray(read_trusted(path, SHA256[path.name], "download"))
