"""The ways to train one epoch of LeNet-5 that the bench compares. Each is a function without arguments."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet5 import lanes
from lenet5.compiler import compiler_found
from lenet5.datasets import Splits
from lenet5.engine import Engine, EngineChoice
from lenet5.params import Params
from lenet5.recipe import draw_plan, make_optimizer
from lenet5.training import make_model

BATCH, LEARNING_RATE = 200, 0.9

Epoch = Callable[[], object]


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


def tutorial_epoch(data: Path, device: torch.device, workers: int) -> Epoch:
    """The tutorial's loop: a DataLoader that turns image after image into a tensor, and loss read at each step."""
    images = FashionMNIST(data, train=True, transform=ToTensor())
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
        return total / len(images)

    return epoch


def lightning_epoch(data: Path, device: torch.device) -> Epoch:
    """PyTorch Lightning's Trainer with a usual module, the tutorial's net and loader, and nothing logged to files."""
    import pytorch_lightning as lightning

    class Lenet(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = tutorial_net(), nn.CrossEntropyLoss()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss: Tensor = self.loss(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)

    loader = DataLoader(FashionMNIST(data, train=True, transform=ToTensor()), batch_size=BATCH, shuffle=True)
    module = Lenet()

    def epoch() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises more workers; that is the row above
            trainer = lightning.Trainer(
                max_epochs=1, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(module, loader)

    return epoch


def engine_epoch(params: Params, splits: Splits, choice: EngineChoice) -> Epoch:
    """One of this project's engines."""
    model = make_model(params.model, 0, splits.train.labels.device)
    engine = Engine(choice, model, make_optimizer(model.parameters(), params.train), splits, params.train)
    generator = torch.Generator().manual_seed(0)
    rates = [params.train.lr] * -(-len(splits.train) // params.train.batch_size)
    return lambda: engine.train_epoch(draw_plan(len(splits.train), params.train.augmentation, generator), rates)


def all_loops(params: Params, splits: Splits, data: Path) -> dict[str, Epoch]:
    """Every loop by its name in the table, the tutorial's first."""
    device = splits.train.labels.device
    engine = partial(engine_epoch, params, splits)
    loops = {
        "tutorial": tutorial_epoch(data, device, workers=0),
        "tutorial, 2 workers": tutorial_epoch(data, device, workers=2),
        "PyTorch Lightning": lightning_epoch(data, device),
        "ours, eager": engine(EngineChoice("eager", False, False, "")),
    }
    in_lanes = device.type == "cpu" and lanes.library() is not None
    if compiler_found():
        loops["ours, compiled"] = engine(EngineChoice("compiled", True, False, ""))
    if in_lanes:
        loops["ours, eager, in lanes"] = engine(EngineChoice("eager", False, True, ""))
    if in_lanes and compiler_found():
        loops["ours, compiled, in lanes"] = engine(EngineChoice("compiled", True, True, ""))
    if device.type == "cuda":
        loops["ours, graph"] = engine(EngineChoice("graph", compiler_found(), False, ""))
    return loops
