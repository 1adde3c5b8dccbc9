"""DistributedDataParallel: SimCLR of a batch that is spread over processes, each on a GPU or a CPU core of its own.

::

    torchrun --nproc_per_node=2 examples/train_ddp.py
    torchrun --nproc_per_node=1 examples/train_ddp.py    # the same losses, but for rounding

Every image is told apart from those of all processes. The lines that hyperkern replaces gathered all features, with
their gradients, and made a matrix of all pairs in each process. Images are scikit-learn's handwritten digits.
"""

import argparse
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # DDP imports it; after `init_process_group` its defaults would hold the group
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

# hyperkern: was from torch.distributed.nn.functional import all_gather
import hyperkern


def view(images: Tensor) -> Tensor:
    """Each image turned, stretched and moved a little, with noise."""
    warps = torch.eye(2, 3) + 0.15 * torch.randn(len(images), 2, 3)
    warped = F.grid_sample(images, F.affine_grid(warps, images.shape, align_corners=False), align_corners=False)
    return warped + 0.1 * torch.randn(images.shape)


def train(epochs: int, batch: int, device: torch.device) -> list[float]:
    """Train on all processes, report on the first; the losses of ``batch`` images each, those of all processes."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    train_images, held_out = images[:1280], images[1280:]
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
    encoder = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 64)).to(device)
    model = DistributedDataParallel(encoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for epoch in range(1, epochs + 1):
        torch.manual_seed(epoch)  # all processes draw the same views, and take their parts of them
        views = TensorDataset(view(train_images), view(train_images))
        sampler = DistributedSampler(views, seed=epoch)
        for x, y in DataLoader(views, batch // dist.get_world_size(), sampler=sampler, drop_last=True):
            x, y = model(torch.cat([x, y]).to(device)).chunk(2)
            # hyperkern: was x, y = torch.cat(all_gather(x)), torch.cat(all_gather(y))
            # hyperkern: was unit = F.normalize(torch.cat([x, y]), dim=1)
            # hyperkern: was logits = (unit @ unit.T / 0.1).fill_diagonal_(-torch.inf)
            # hyperkern: was loss = F.cross_entropy(logits, torch.arange(len(unit), device=device).roll(len(x)))
            loss = hyperkern.nt_xent(x, y, temperature=0.1, group=hyperkern.Group())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if dist.get_rank() == 0 and epoch % max(1, epochs // 5) == 0:
            print(f"epoch {epoch:2}: loss {losses[-1]:.4f}", flush=True)
    with torch.no_grad():
        known, asked = (F.normalize(encoder(of.to(device)), dim=1).cpu() for of in (train_images, held_out))
    right = labels[(asked @ known.T).argmax(1)] == labels[1280:]
    if dist.get_rank() == 0:
        print(f"{100 * right.float().mean():.1f} % of the held-out images show the digit of their nearest neighbour")
    return losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Join the other processes, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="images of a step, of all processes (%(default)s)")
    options = parser.parse_args(arguments)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group()
    train(options.epochs, options.batch, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
