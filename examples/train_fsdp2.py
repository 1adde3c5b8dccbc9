"""FSDP2 (``fully_shard``): code search in two towers of one transformer, trained with a batch beyond its memory.

::

    torchrun --nproc_per_node=2 examples/train_fsdp2.py

Parameters, gradients and the state of the optimiser are spread over the processes, and so is the batch; every question
is told apart from the answers of all processes. The transformer encodes ``--chunk`` texts at a time, whatever the
batch. Texts are descriptions and signatures of Python's functions, as words.
"""

import argparse
import functools
import os
import re
import zlib
from collections.abc import Sequence

import docstring_pairs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

# hyperkern: was from torch.distributed.nn.functional import all_gather
import hyperkern

LENGTH = 16  # words


class Encoder(nn.Module):
    """Texts, ``(N, LENGTH)`` numbers of words, to features ``(N, 64)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4096, 64)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 2, 128, 0.0, batch_first=True) for _ in range(2))

    def forward(self, texts: Tensor) -> Tensor:
        hidden = self.embedding(texts)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.mean(1)


def as_words(text: str) -> list[int]:
    """The first words as numbers."""
    words = [1 + zlib.crc32(word.lower().encode()) % 4095 for word in re.findall("[A-Z]?[a-z]+", text)]
    return (words + LENGTH * [0])[:LENGTH]


def train(steps: int, batch: int, chunk: int, mesh: DeviceMesh) -> list[float]:
    """Train on all processes, report on the first; the losses of all ``batch`` pairs."""
    rank, ranks, device = mesh.get_rank(), mesh.size(), mesh.device_type
    pairs, _ = docstring_pairs.load(1000)
    questions, answers = (
        torch.tensor([as_words(text) for text in side]).to(device) for side in zip(*pairs, strict=True)
    )
    torch.manual_seed(0)
    encoder = Encoder().to(device)
    for module in (*encoder.layers, encoder):
        fully_shard(module, mesh=mesh)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    # hyperkern: was def loss_of(x, y):
    # hyperkern: was     x, y = (nn.functional.normalize(torch.cat(all_gather(rows))) for rows in (x, y))
    # hyperkern: was     logits, own = 20 * x @ y.T, torch.arange(len(x), device=device)
    # hyperkern: was     return sum(nn.functional.cross_entropy(way, own) for way in (logits, logits.T)) / 2
    loss_of = functools.partial(hyperkern.clip_loss, logit_scale=20.0, group=mesh)
    losses = []
    for step in range(1, steps + 1):
        own = torch.randperm(len(questions))[:batch].tensor_split(ranks)[rank]  # all processes draw the same batch
        x, y = questions[own], answers[own]
        optimizer.zero_grad()
        # hyperkern: was loss = loss_of(encoder(x), encoder(y))
        # hyperkern: was loss.backward()
        loss = hyperkern.cached_step(encoder, [x, y], loss_of, chunk_size=chunk)
        optimizer.step()
        losses.append(loss.item())
        if rank == 0 and step % max(1, steps // 5) == 0:
            print(f"step {step:3}: loss {losses[-1]:.4f} of {batch} pairs", flush=True)
    return losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Join the other processes, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="pairs of a step, of all processes (%(default)s)")
    parser.add_argument("--chunk", type=int, default=64, help="texts encoded together (%(default)s)")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # a mesh of GPUs has one for each process
    mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))
    train(options.steps, options.batch, options.chunk, mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
