"""FashionMNIST: where it comes from, as tensors and splits, and any picture as FashionMNIST would hold it."""
