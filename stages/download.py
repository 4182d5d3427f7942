"""Stage download: fetch FashionMNIST and verify it. About 3 s; no param but `download` matters."""

from beside import run_stage

import os

from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.data.sources import fetch_all
from lenet5.params import Params


def main(params: Params) -> None:
    """Leave the four verified IDX files in torchvision's layout."""
    for line in fetch_all(RAW_DIR, params.download, os.environ.get("FASHION_MNIST_DIR")):
        print(line)
    print(f"FashionMNIST is in {RAW_DIR}, SHA-256 verified")


if __name__ == "__main__":
    run_stage("download", main)
