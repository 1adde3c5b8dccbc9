"""Lightning and lightly: SimCLR of scikit-learn's handwritten digits; the lines that hyperkern changes are marked.

::

    python examples/train_lightning.py
"""

import argparse
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from lightly.models.modules import SimCLRProjectionHead
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# hyperkern: was from lightly.loss import NTXentLoss
from hyperkern.integrations.lightly import NTXentLoss

# hyperkern: new
from hyperkern.integrations.lightning import AlignmentUniformity


def view(images: Tensor) -> Tensor:
    """Each image turned, stretched and moved a little, with noise."""
    warps = torch.eye(2, 3) + 0.15 * torch.randn(len(images), 2, 3)
    warped = F.grid_sample(images, F.affine_grid(warps, images.shape, align_corners=False), align_corners=False)
    return warped + 0.1 * torch.randn(images.shape)


class SimCLR(L.LightningModule):
    """An encoder, its projection head and the loss of two views."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 64))
        self.head = SimCLRProjectionHead(64, 64, 32)
        self.criterion = NTXentLoss(temperature=0.2)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (images,) = batch
        loss = self.criterion(self.head(self.encoder(view(images))), self.head(self.encoder(view(images))))
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        (images,) = batch
        return {"z": self.head(self.encoder(view(images))), "z_other": self.head(self.encoder(view(images)))}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Report(L.Callback):
    """Prints what has been logged."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: SimCLR) -> None:
        logged = [f"{key} {value:.3f}" for key, value in trainer.callback_metrics.items() if "norm" not in key]
        print(", ".join([f"epoch {trainer.current_epoch + 1}: loss {pl_module.losses[-1]:.4f}", *logged]), flush=True)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, and look for the nearest neighbours of held-out images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="(%(default)s)")
    options = parser.parse_args(arguments)
    L.seed_everything(0, verbose=False)
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    train = DataLoader(TensorDataset(images[:1280]), options.batch, shuffle=True, drop_last=True)
    held_out = DataLoader(TensorDataset(images[1280:]), options.batch)
    model = SimCLR()
    callbacks = [Report()]
    # hyperkern: new
    callbacks.insert(0, AlignmentUniformity("held_out", target="z", positive="z_other"))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=options.epochs, callbacks=callbacks, num_sanity_val_steps=0, **quiet)
    trainer.fit(model, train, held_out)
    with torch.no_grad():
        known, asked = F.normalize(model.encoder(images), dim=1).split([1280, len(images) - 1280])
    right = labels[(asked @ known.T).argmax(1)] == labels[1280:]
    print(f"{100 * right.float().mean():.1f} % of the held-out images show the digit of their nearest neighbour")
    return model.losses


if __name__ == "__main__":
    main()
