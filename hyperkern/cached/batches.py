"""Inputs that are cut into chunks, and the embeddings that are put together from them; any structure of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Encoder = Callable[[Any], Any]


class Batch:
    """One input: its tensors, and how they are cut.

    Attributes:
        name: of the input, in messages.
        encoder: what encodes it.
        rows: N, the leading dimension of every tensor that has one.
        count: number of chunks.
    """

    def __init__(self, name: str, encoder: Encoder, value: Any, chunk_size: int) -> None:
        self.name, self.encoder = name, encoder
        if isinstance(value, Mapping) and not isinstance(value, dict):
            value = dict(value)  # what tokenizers return is a mapping that pytrees do not know
        self._leaves, self._structure = tree_flatten(value)
        shapes = [tuple(leaf.shape) for leaf in self._leaves if _has_rows(leaf)]
        if not shapes:
            found = sorted({type(leaf).__name__ for leaf in self._leaves})
            raise TypeError(
                f"{name} must be a tensor (N, ...), or a structure of dicts, tuples and lists with such tensors, "
                f"got {type(value).__name__} of {', '.join(found) or 'nothing'}"
            )
        if len({shape[0] for shape in shapes}) > 1:
            raise ValueError(f"the tensors of {name} must have the same leading dimension, got shapes {shapes}")
        self.rows = shapes[0][0]
        if self.rows == 0:
            raise ValueError(f"{name} must not be empty, got shapes {shapes}")
        self._size = min(chunk_size, self.rows)
        self.count = -(-self.rows // self._size)
        self._versions = [_version(leaf) for leaf in self._leaves]
        self._gradients: dict[int, Tensor] = {}

    def rows_of(self, chunk: int) -> slice:
        """The rows of a chunk; the last one may be shorter."""
        return slice(chunk * self._size, min(self.rows, (chunk + 1) * self._size))

    def devices(self) -> Iterator[torch.device]:
        """Where its tensors are."""
        return (leaf.device for leaf in self._leaves if isinstance(leaf, Tensor))

    def chunk(self, chunk: int) -> tuple[Any, dict[int, Tensor]]:
        """The input of a chunk, without a copy, and those of its tensors that gather a gradient, by their number."""
        parts, differentiable = list(self._leaves), {}
        for i, leaf in enumerate(self._leaves):
            if isinstance(leaf, Tensor):
                # Detached: what the input was computed by is differentiated once, by `end`, not once for each chunk.
                parts[i] = leaf.detach()[self.rows_of(chunk)] if _has_rows(leaf) else leaf.detach()
                if leaf.requires_grad:
                    differentiable[i] = parts[i].requires_grad_()
        return tree_unflatten(parts, self._structure), differentiable

    def keep_gradients(self, chunk: int, differentiable: dict[int, Tensor]) -> None:
        """Takes the gradients of the tensors that `chunk` has returned."""
        for i, part in differentiable.items():
            if part.grad is not None:
                leaf = self._leaves[i]
                if i not in self._gradients:
                    self._gradients[i] = torch.zeros_like(leaf)
                whole = self._gradients[i]
                (whole[self.rows_of(chunk)] if _has_rows(leaf) else whole).add_(part.grad)

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors of the input that require a gradient, each with the one that was kept."""
        return [(self._leaves[i], gradient) for i, gradient in self._gradients.items()]

    def check_unchanged(self) -> None:
        """Raises where the encoder wrote into its input: the second encoding would see something else."""
        if self._versions != [_version(leaf) for leaf in self._leaves]:
            raise ValueError(
                f"the encoder of {self.name} must not write into its input, which is encoded twice: let it copy"
            )


class Embeddings:
    """What the encoder of a batch returned, put together from chunks."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._structure: Any = None  # of its outputs, a TreeSpec once there are some
        self._leaves: list[Any] = []
        self._first: list[Tensor | None] = []
        self._needs: list[bool] = []

    @torch.no_grad()
    def add(self, chunk: int, output: Any) -> None:
        """Writes the output of a chunk into place; that of the first one tells which parts need a gradient."""
        rows = self._batch.rows_of(chunk)
        leaves = self._parts(output, rows, "for every chunk")
        if chunk == 0:
            self._needs = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
            self._first = [leaf.detach().clone() if _is_scalar(leaf) else None for leaf in leaves]
            self._leaves = [self._whole(leaf) for leaf in leaves]
        for leaf, first, whole in zip(leaves, self._first, self._leaves, strict=True):
            if _has_rows(leaf):
                if (leaf.shape[1:], leaf.dtype, leaf.device) != (whole.shape[1:], whole.dtype, whole.device):
                    raise ValueError(
                        f"the encoder of {self._batch.name} must return rows of one shape, dtype and device, got "
                        f"{tuple(leaf.shape[1:])}, {leaf.dtype}, {leaf.device} after "
                        f"{tuple(whole.shape[1:])}, {whole.dtype}, {whole.device}"
                    )
                whole[rows] = leaf
            elif first is not None and first.is_floating_point():
                whole += self._share(rows) * (leaf - first)  # exact where all are equal

    def devices(self) -> Iterator[torch.device]:
        """Where its tensors are."""
        return (leaf.device for leaf in self._leaves if isinstance(leaf, Tensor))

    def for_loss(self) -> Any:
        """The whole, as leaves of the graph of the loss."""
        for leaf, needs in zip(self._leaves, self._needs, strict=True):
            if needs:
                leaf.requires_grad_()
        return tree_unflatten(self._leaves, self._structure)

    def gradients(self) -> list[Tensor | None]:
        """The gradient of each part, after the backward pass of the loss; the parts themselves are given up."""
        found = [leaf.grad if isinstance(leaf, Tensor) else None for leaf in self._leaves]
        self._leaves = []
        return found

    def pairs(self, chunk: int, output: Any, gradients: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        """The parts of a chunk's output that have a gradient, and theirs."""
        rows = self._batch.rows_of(chunk)
        tensors, theirs = [], []
        for leaf, gradient in zip(self._parts(output, rows, "when a chunk is encoded again"), gradients, strict=True):
            if gradient is not None and leaf.requires_grad:
                tensors.append(leaf)
                theirs.append(gradient[rows] if _has_rows(leaf) else self._share(rows) * gradient)
        return tensors, theirs

    def _share(self, rows: slice) -> float:
        """Of all rows, of some."""
        return float((rows.stop - rows.start) / self._batch.rows)

    def _whole(self, leaf: Any) -> Any:
        # Rows are copied even where there is one chunk: what an encoder returns may be a view of much more.
        if _has_rows(leaf):
            return leaf.new_empty(self._batch.rows, *leaf.shape[1:])
        return leaf.detach().clone() if _is_scalar(leaf) else leaf

    def _parts(self, output: Any, rows: slice, when: str) -> list[Any]:
        """The parts of an output; raises unless they are such for these rows, in the structure of the first one."""
        leaves, structure = tree_flatten(output)
        name, count = self._batch.name, rows.stop - rows.start
        if not any(_has_rows(leaf) and leaf.is_floating_point() for leaf in leaves):
            found = sorted({str(leaf.dtype) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves})
            raise TypeError(
                f"the encoder of {name} must return a floating tensor of rows, or a dict, tuple or list with one, "
                f"got {', '.join(found) or 'nothing'}"
            )
        for leaf in leaves:
            if _has_rows(leaf) and len(leaf) != count:
                raise ValueError(
                    f"the encoder of {name} must return one row for each of {count} rows, got shape {tuple(leaf.shape)}"
                )
        if self._structure is None:
            self._structure = structure
        if structure != self._structure:
            raise ValueError(
                f"the encoder of {name} must return the same structure {when}, got {structure} after {self._structure}"
            )
        return leaves


def _has_rows(leaf: Any) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _is_scalar(leaf: Any) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.dim() == 0


def _version(leaf: Any) -> int:
    """Which writes a tensor has seen; inference tensors do not count them."""
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0
