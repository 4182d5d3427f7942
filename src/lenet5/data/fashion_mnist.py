"""FashionMNIST itself: its classes, its four files and the checksums that vouch for them.

Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017 (arXiv:1708.07747).
"""

from pathlib import Path

from lenet5.files import digest

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGE_SIZE = 28

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

SHA256 = {
    TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the uncompressed files, whichever source they came from."""

RAW_DIR = Path("data/FashionMNIST/raw")
"""torchvision's layout: ``torchvision.datasets.FashionMNIST("data")`` opens it."""


def is_verified(path: Path) -> bool:
    """Whether ``path`` is there and holds the published bytes of its name."""
    return path.is_file() and digest(path.read_bytes()) == SHA256[path.name]


def data_digest() -> str:
    """Identify FashionMNIST: the files that all stages insist on."""
    return digest("".join(sorted(SHA256.values())).encode())
