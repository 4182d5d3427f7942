"""The loops that the bench measures against, in a process of their own, as a person's script would start them.

Nothing of this project's package is imported here: it would set how threads wait, for these loops too.
"""

import logging
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from turns import work
from tutorial import BATCH, LEARNING_RATE, Epoch, Images, tutorial_epoch, tutorial_net

TUTORIAL, TWO_WORKERS, LIGHTNING = NAMES = ("tutorial", "tutorial, 2 workers", "PyTorch Lightning")


def main() -> None:
    data, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    images = FashionMNIST(data, train=True, transform=ToTensor())
    epochs = {
        TUTORIAL: tutorial_epoch(images, device, workers=0),
        TWO_WORKERS: tutorial_epoch(images, device, workers=2),
        LIGHTNING: lightning_epoch(images, device),
    }
    work(epochs, device)


def lightning_epoch(images: Images, device: torch.device) -> Epoch:
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

    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    loader = DataLoader(images, batch_size=BATCH, shuffle=True)
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


if __name__ == "__main__":
    main()
