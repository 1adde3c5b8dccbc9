"""Alignment + uniformity of one batch that is spread over several processes, each on a GPU or a CPU core of its own.

::

    pip install '.[demo]'
    torchrun --nproc_per_node=2 -m examples.torchrun_align_uniform
    python -m examples.torchrun_align_uniform                         # the same batch in one process

Every process encodes its part of the batch; the loss is that of the whole batch, with all pairs across processes, and
DistributedDataParallel leaves each of them with the gradient of one process that has the whole batch. All that this
takes is ``group=hyperkern.Group()`` in the loss. Images, encoder and evaluation are those of ``make demo``.
"""

import argparse
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # DDP imports it; after `init_process_group` its defaults would hold the group
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hyperkern
from examples.digits.config import DemoConfig, OptionError, check_ranges
from examples.digits.data import Digits, augment, load
from examples.digits.encoder import Encoder, new_encoder
from examples.digits.evaluate import evaluate
from examples.digits.report import print_table


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=60, help="passes over the training images (%(default)s)")
    options.add_argument("--batch", type=int, default=256, help="images of a step, of all processes (%(default)s)")
    options.add_argument("--dim", type=int, default=64, help="dimension of the features (%(default)s)")
    options.add_argument("--lr", type=float, default=3e-3, help="Adam's, at the start of a cosine decay (%(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of weights, order and views (%(default)s)")
    options.add_argument("--transport", default="auto", help="auto, gather or ring, see hyperkern.Group (%(default)s)")
    return options


def own_device() -> torch.device:
    """A GPU for each process of this machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def train(options: argparse.Namespace, digits: Digits, group: hyperkern.Group | None) -> Encoder:
    """Train; every process returns the same encoder."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if group is not None else (0, 1)
    images = digits.train_images
    encoder = new_encoder(options.dim, options.seed, images.device)
    model: nn.Module = encoder
    if group is not None:
        # Statistics of the whole batch, where there is an implementation: like the loss, they are not a mean of parts.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(encoder) if images.is_cuda else encoder
        model = DistributedDataParallel(model)
    loss_of = hyperkern.AlignUniformLoss(group=group)
    # All processes draw the same order, and each its own views.
    order_generator = torch.Generator().manual_seed(options.seed)
    view_generator = torch.Generator(images.device).manual_seed(1000 * options.seed + rank)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    steps = len(images) // options.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs * steps)
    for epoch in range(1, options.epochs + 1):
        order = torch.randperm(len(images), generator=order_generator)[: steps * options.batch]
        for batch in order.split(options.batch):
            chosen = images[batch.tensor_split(ranks)[rank].to(images.device)]  # parts may differ by one image
            views = torch.cat([augment(chosen, view_generator), augment(chosen, view_generator)])
            loss = loss_of(*model(views).chunk(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if rank == 0 and epoch % 10 == 0:
            print(f"epoch {epoch:3}: loss of {options.batch} images on {ranks} processes {loss.item():.4f}", flush=True)
    return encoder.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on all processes, evaluate on the first."""
    command = parser()
    options = command.parse_args(arguments)
    torch.set_num_threads(1)  # the layers are so small that threads wait for each other more than they compute
    group = None
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group()
        group = hyperkern.Group(transport=options.transport)
    try:
        digits = load(own_device())
        check_ranges(
            DemoConfig(seeds=1, epochs=options.epochs, dim=options.dim, batch=options.batch), len(digits.train_labels)
        )
        encoder = train(options, digits, group)
        if group is None or dist.get_rank() == 0:
            found = evaluate(encoder, digits, backend=None)
            shares = (f"{100 * share:.1f}" for share in (found.linear_probe, found.scaled_probe, found.knn))
            row = ("alignment + uniformity", f"{found.alignment:.4f}", f"{found.uniformity:.3f}", *shares)
            print_table(Console(), f"{len(digits.held_out_labels)} held-out images, {options.dim} dimensions", [row])
        if group is not None:
            dist.barrier()  # the others leave when the first is done
    except OptionError as error:
        command.error(str(error))
    finally:
        if group is not None:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
