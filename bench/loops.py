"""The ways to train one epoch of LeNet-5 that the bench compares. Each is a function without arguments."""

import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet5.data.datasets import Splits
from lenet5.params import Params
from lenet5.training import inductor, lanes
from lenet5.training.engine import Engine, EngineChoice
from lenet5.training.loop import laid_out, make_model
from lenet5.training.recipe import draw_plan
from tutorial import BATCH, LEARNING_RATE, Epoch, tutorial_epoch, tutorial_net


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
    model = laid_out(make_model(params.model, 0, splits.train.labels.device), choice)
    engine = Engine(choice, model, splits, params.train)
    generator = torch.Generator().manual_seed(0)
    rates = [params.train.lr] * -(-len(splits.train) // params.train.batch_size)
    return lambda: engine.train_epoch(draw_plan(len(splits.train), params.train.augmentation, generator), rates)


def all_loops(params: Params, splits: Splits, data: Path) -> dict[str, Epoch]:
    """Every loop by its name in the table, the tutorial's first."""
    device = splits.train.labels.device
    engine = partial(engine_epoch, params, splits)
    images = FashionMNIST(data, train=True, transform=ToTensor())
    loops = {
        "tutorial": tutorial_epoch(images, device, workers=0),
        "tutorial, 2 workers": tutorial_epoch(images, device, workers=2),
        "PyTorch Lightning": lightning_epoch(data, device),
        "ours, eager": engine(EngineChoice("eager", False, "")),
    }
    if device.type == "cuda":
        if not inductor.lacking():
            loops["ours, compiled"] = engine(EngineChoice("compiled", True, ""))
        loops["ours, graph"] = engine(EngineChoice("graph", inductor.lacking() is None, ""))
    else:
        with suppress(lanes.UnavailableError):  # no compiler, say
            loops["ours, lanes"] = engine(EngineChoice("lanes", False, ""))
    return loops
