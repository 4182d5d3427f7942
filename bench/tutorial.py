"""The loop that tutorials train LeNet-5 with: what the bench measures everything against. Needs torch alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

BATCH, LEARNING_RATE = 200, 0.9

Epoch = Callable[[], object]
Images = Dataset[Any]


def tutorial_net() -> nn.Sequential:
    """LeNet-5 as tutorials write it."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(), nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return net


def tutorial_epoch(images: Images, device: torch.device, workers: int) -> Epoch:
    """The tutorial's loop: a DataLoader that takes image after image, and loss read at each step."""
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=workers)
    net, loss = tutorial_net().to(device), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)

    def epoch() -> float:
        net.train()
        total = 0.0
        for inputs, labels in loader:
            x, y = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            batch_loss = loss(net(x), y)
            batch_loss.backward()
            optimizer.step()
            total += batch_loss.item() * len(y)
        return total / len(loader.dataset)  # type: ignore[arg-type]

    return epoch
