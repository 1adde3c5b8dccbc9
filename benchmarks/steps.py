"""`hyperkern.cached_step` beside the ordinary step: cases that `python -m benchmarks steps` measures.

A step takes two noisy views of the demo's images and the parameters of its encoder, whose gradients it makes. The
encoder is in evaluation mode: nothing depends on the chunk, and the gate holds gradients made in chunks against those
of the whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import hyperkern as hk
from examples.digits.data import load
from examples.digits.encoder import new_encoder
from hyperkern.bench import case, implementation
from hyperkern.bench.registry import CASES, DTYPES, Loss

DIM, CHUNK = 64, 1024
MOST_AT_ONCE = 65536  # rows of the ordinary step, which stores all activations
CPU = torch.device("cpu")
Encode = Callable[[Tensor], Tensor]


def draw(n: int, d: int, dtype: str, device: str) -> list[Tensor]:
    """Two views ``(N, 1, 8, 8)`` of the training images, repeated, and the encoder's parameters."""
    images = load(CPU).train_images
    repeated = images.repeat(-(-n // len(images)), 1, 1, 1)[:n]
    generator = torch.Generator().manual_seed(0)
    views = [repeated + 0.1 * torch.randn(repeated.shape, generator=generator) for _ in range(2)]
    parameters = new_encoder(d, 0, CPU).parameters()
    kind = DTYPES[dtype]
    return [*(view.to(kind) for view in views), *(p.detach().to(kind).requires_grad_() for p in parameters)]


def one_shot(encode: Encode, views: Sequence[Tensor], loss: Loss, chunk: int) -> Tensor:
    """The ordinary step."""
    return loss(*map(encode, views))


class _Made(torch.autograd.Function):
    """A step that makes the gradients itself, as a loss that hands them out in its backward pass."""

    @staticmethod
    def forward(ctx: Any, step: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        leaves = [x.detach().requires_grad_(needs) for x, needs in zip(inputs, ctx.needs_input_grad[1:], strict=True)]
        with torch.enable_grad():
            value = step(*leaves)
        ctx.save_for_backward(*(leaf.grad for leaf in leaves))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(None if saved is None else grad * saved for saved in ctx.saved_tensors)


def cached(encode: Encode, views: Sequence[Tensor], loss: Loss, chunk: int) -> Tensor:
    """In chunks, by the package."""
    value: Tensor = hk.cached_step(encode, list(views), loss, chunk_size=chunk)
    return value


def by_hand(encode: Encode, views: Sequence[Tensor], loss: Loss, chunk: int) -> Tensor:
    """The arithmetic of the cached step and nothing else: no random numbers, no buffers, no checks."""
    with torch.no_grad():
        embeddings = [torch.cat([encode(part) for part in view.split(chunk)]) for view in views]
    for rows in embeddings:
        rows.requires_grad_()
    value = loss(*embeddings)
    value.backward()
    for view, rows in zip(views, embeddings, strict=True):
        assert rows.grad is not None
        for part, gradient in zip(view.split(chunk), rows.grad.split(chunk), strict=True):
            encode(part).backward(gradient)
    return value.detach()


def _step(way: Callable[[Encode, Sequence[Tensor], Loss, int], Tensor], loss: Loss) -> Loss:
    """A way to make a step as a loss of views and parameters, for few rows in chunks as well."""
    encoder = new_encoder(DIM, 0, CPU).eval()
    names = [name for name, _ in encoder.named_parameters()]

    def of_inputs(*inputs: Tensor) -> Tensor:
        views, parameters = inputs[:2], inputs[2:]
        buffers = {name: b.to(views[0].dtype) for name, b in encoder.named_buffers() if b.is_floating_point()}
        state = {**dict(zip(names, parameters, strict=True)), **buffers}
        chunk = min(CHUNK, -(-len(views[0]) // 2))
        return way(lambda images: torch.func.functional_call(encoder, state, (images,)), views, loss, chunk)

    return of_inputs if way is one_shot else lambda *inputs: _Made.apply(of_inputs, *inputs)


def _enter(name: str, loss: Loss, like: str) -> None:
    """Enters the steps with a loss; what is counted is the loss alone."""
    counted = f"the loss alone, as {like}; no encoder"
    flops = CASES[like].flops if like in CASES else lambda n, d, mode: 2.0 * n * d
    case(name, inputs=2, flops=flops, counted=counted, baseline="one-shot", own=draw)(_step(one_shot, loss))
    enter = functools.partial(implementation, name, multiple_of=DIM, devices=("cpu",), modes=("both",), slowdown=50)
    enter("one-shot", most_rows=MOST_AT_ONCE)(lambda: _step(one_shot, loss))
    enter("cached_step", package="hyperkern")(lambda: _step(cached, loss))
    enter("by-hand")(lambda: _step(by_hand, loss))


# Of all pairs, which take ever more of the time, and of the pairs of a row: what is left is the encoding.
_enter("step of align_uniform", lambda x, y: hk.align_uniform(x, y).loss, "align_uniform")
_enter("step of alignment", hk.alignment, "alignment")
