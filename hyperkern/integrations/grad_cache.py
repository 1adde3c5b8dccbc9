"""Drop-in for GradCache: ``from grad_cache import GradCache`` becomes an import from here, and so do its losses.

`GradCache` is `hyperkern.cached_step` under the original's constructor and calls. The losses have the original's values
and gradients without a matrix of all logits. What differs:

- each `DistributedDataParallel` reduces its gradients once in a step, whatever ``no_sync_except_last`` says: they are
  the same;
- parameters that are used by the loss alone get their gradient, also where they are part of a wrapped model;
- batch normalisation updates its running statistics once for each chunk, where the original does it twice;
- the losses are float32 (float64 for float64) and computed in it;
- with `DistributedContrastiveLoss` processes may have different numbers of queries, and no process computes what is
  another's.

The decorators of ``grad_cache.functional`` are not here. Those of the original work with the losses below as they are,
but they encode what they are given without a scheme of the step: `hyperkern.cached_step` is that for any encoders and
any loss. This module does not import GradCache.
"""

from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..arguments import check_integer
from ..cached import cached_step
from ..distributed import Group
from ._options import PlainDropIn
from ._passages import passage_loss


class GradCache(PlainDropIn):
    """Loss and gradients of a batch of any size, in the memory that encoding a chunk takes.

    Its methods can be overridden, but for ``forward_no_grad``, ``build_cache`` and ``forward_backward``, which
    `hyperkern.cached_step` stands for.

    Args:
        models: the encoder of each input, the same one for several if they share it.
        chunk_sizes: rows that are encoded together, for all inputs or for each.
        loss_fn: called with the representations of all inputs and the keywords of the call; it returns a scalar.
        split_input_fn: called with an input and its chunk size, returns a list of chunks, any that `model_call` takes.
        get_rep_fn: called with what a model returns, returns the representations, ``(n, ...)``; without it they are
            what the model returns.
        fp16: whether models and loss run under CUDA's autocast to float16, and the loss is scaled by ``scaler``.
        scaler: for ``fp16``; step and update it after the call.

    Raises:
        ValueError: ``fp16`` without ``scaler``.

    Source:
        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
    """

    _not_here = ("forward_no_grad", "build_cache", "forward_backward")

    def __init__(
        self,
        models: list[nn.Module],
        chunk_sizes: int | list[int],
        loss_fn: Callable[..., Tensor],
        split_input_fn: Callable[[Any, int], Any] | None = None,
        get_rep_fn: Callable[..., Tensor] | None = None,
        fp16: bool = False,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.models = models
        self.chunk_sizes = [chunk_sizes] * len(models) if isinstance(chunk_sizes, (int, float)) else chunk_sizes
        self.split_input_fn, self.get_rep_fn, self.loss_fn = split_input_fn, get_rep_fn, loss_fn
        self.scaler = scaler
        self.fp16 = fp16
        self._get_input_tensors_strict = False
        self._check_scaler()

    def _check_scaler(self) -> None:
        if self.fp16 and self.scaler is None:
            raise ValueError("fp16=True needs a gradient scaler, got scaler=None")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """`cache_step`."""
        return self.cache_step(*args, **kwargs)

    def cache_step(self, *model_inputs: Any, no_sync_except_last: bool = False, **loss_kwargs: Any) -> Tensor:
        """Adds the gradients of the loss of the whole batch to ``.grad``.

        What is encoded twice sees the same random numbers both times, chunk after chunk and model after model;
        afterwards the generators are where encoding and loss have left them.

        Args:
            *model_inputs: the input of each model.
            no_sync_except_last: for models in `DistributedDataParallel` alone, and without effect: they reduce once.
            **loss_kwargs: handed on to the loss.

        Returns:
            The loss, detached.

        Raises:
            NotImplementedError: an input that cannot be cut into chunks, or given to a model.
            ValueError: other numbers of inputs or chunk sizes than of models, an input without chunks,
                ``no_sync_except_last`` with a model that is not wrapped, ``fp16`` without a scaler, or what
                `hyperkern.cached_step` refuses.
        """
        for name, given in (("chunk_sizes", self.chunk_sizes), ("model_inputs", model_inputs)):
            if len(given) != len(self.models):
                raise ValueError(f"{name} must have one entry for each of {len(self.models)} models, got {len(given)}")
        self._check_scaler()
        if no_sync_except_last:
            for model in self.models:
                if not isinstance(model, nn.parallel.DistributedDataParallel):
                    raise ValueError(
                        f"no_sync_except_last=True needs models in DistributedDataParallel, got {type(model).__name__}"
                    )
        # Each chunk is an input of its own, of one row: a chunk that the caller made need not be one of rows.
        encoders, places, counts = [], [], []
        for model, value, size in zip(self.models, model_inputs, self.chunk_sizes, strict=True):
            chunks = list(self.split_inputs(value, size))
            if not chunks:
                raise ValueError(f"model_inputs must have rows, got none for a {type(model).__name__}")
            encoders += [partial(self._encode, model, chunk) for chunk in chunks]
            places += [self._places(chunk) for chunk in chunks]
            counts.append(len(chunks))

        def loss(*parts: Tensor) -> Tensor:
            rest = iter(part[0] for part in parts)
            representations = [torch.cat(list(islice(rest, count))) for count in counts]
            with self._autocast():
                return self.compute_loss(*representations, **loss_kwargs)

        scale = self.scaler.scale if self.fp16 and self.scaler is not None else None
        found: Tensor = cached_step(encoders, places, loss, chunk_size=1, scale=scale)
        return found

    def split_inputs(self, model_input: Any, chunk_size: int) -> list[Any]:
        """The chunks of an input: by ``split_input_fn``, or of a tensor, a list or dict of such, or a pair of both.

        Raises:
            NotImplementedError: an input of another type.
        """
        if self.split_input_fn is not None:
            chunks: list[Any] = self.split_input_fn(model_input, chunk_size)
            return chunks
        check_integer("chunk_sizes", chunk_size, 1)
        if isinstance(model_input, Tensor):
            return list(model_input.split(chunk_size))
        if isinstance(model_input, list) and all(isinstance(part, Tensor) for part in model_input):
            return [list(parts) for parts in _cut(model_input, chunk_size)]
        if isinstance(model_input, (dict, UserDict)) and all(isinstance(t, Tensor) for t in model_input.values()):
            cut = _cut(list(model_input.values()), chunk_size)
            return [dict(zip(model_input, parts, strict=True)) for parts in cut]
        if _is_call(model_input):
            args, kwargs = (self.split_inputs(part, chunk_size) if part else None for part in model_input)
            count = len(args or kwargs or [])
            return list(zip(args or [[] for _ in range(count)], kwargs or [{} for _ in range(count)], strict=True))
        raise NotImplementedError(
            f"an input of type {type(model_input).__name__} cannot be cut into chunks: give split_input_fn"
        )

    def get_input_tensors(self, model_input: Any) -> list[Tensor]:
        """The tensors in an input, on whose devices there are random numbers to note."""
        if isinstance(model_input, Tensor):
            return [model_input]
        if isinstance(model_input, (list, tuple)):
            return [tensor for part in model_input for tensor in self.get_input_tensors(part)]
        if isinstance(model_input, (dict, UserDict)):
            return [tensor for part in model_input.values() for tensor in self.get_input_tensors(part)]
        if self._get_input_tensors_strict:
            raise NotImplementedError(f"no tensors can be found in an input of type {type(model_input).__name__}")
        return []

    def model_call(self, model: nn.Module, model_input: Any) -> Any:
        """The model of a chunk: a tensor, its arguments as a list or dict, or as a tuple of both."""
        with self._autocast():
            if isinstance(model_input, Tensor):
                return model(model_input)
            if isinstance(model_input, list):
                return model(*model_input)
            if isinstance(model_input, (dict, UserDict)):
                return model(**model_input)
            if _is_call(model_input):
                args, kwargs = model_input
                return model(*args, **kwargs)
        raise NotImplementedError(f"a model cannot be called with an input of type {type(model_input).__name__}")

    def get_reps(self, model_out: Any) -> Tensor:
        """The representations, ``(n, ...)``, in what a model returned."""
        found: Tensor = model_out if self.get_rep_fn is None else self.get_rep_fn(model_out)
        return found

    def compute_loss(self, *reps: Tensor, **loss_kwargs: Any) -> Tensor:
        """The loss of the representations of all inputs."""
        return self.loss_fn(*reps, **loss_kwargs)

    def _encode(self, model: nn.Module, chunk: Any, _: Any) -> Tensor:
        found = self.get_reps(self.model_call(model, chunk))
        if not isinstance(found, Tensor):
            raise TypeError(
                f"get_rep_fn must return the representations, a tensor, got {type(found).__name__}, "
                f"get_rep_fn={self.get_rep_fn!r}"
            )
        return found.unsqueeze(0)

    def _places(self, chunk: Any) -> list[Tensor]:
        """One row on each device of a chunk."""
        devices = dict.fromkeys(tensor.device for tensor in self.get_input_tensors(chunk))
        return [torch.empty(1, device=device) for device in devices or ["cpu"]]

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.fp16 and torch.cuda.is_available()
        # Not entered where it is off: that would end one of the caller's.
        return torch.autocast("cuda", torch.float16) if enabled else nullcontext()


class SimpleContrastiveLoss(PlainDropIn):
    """Each query picks its passage among those of all queries: cross entropy of the inner products.

    Args:
        n_hard_negatives: passages that follow a query's own one.

    Raises:
        TypeError: ``n_hard_negatives`` is no integer.
        ValueError: it is below 0.
    """

    def __init__(self, n_hard_negatives: int = 0) -> None:
        check_integer("n_hard_negatives", n_hard_negatives, 0)
        self.target_per_qry = n_hard_negatives + 1

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The loss.

        Args:
            x: ``(N, D)`` queries, as they come.
            y: ``(M, D)`` passages.
            target: ``(N,)`` integers, the passage of each query, -100 for one that does not count; without it
                ``M = (n_hard_negatives + 1) N``, in the order of the queries, each with its own one first.
            reduction: ``"mean"`` or ``"sum"`` over the queries, or ``"none"``.

        Raises:
            TypeError: an input is no tensor of a wanted dtype, or the dtypes differ.
            ValueError: wrong shapes, different devices, an unknown ``reduction``.
        """
        return passage_loss("SimpleContrastiveLoss", x, y, target, each=self.target_per_qry, reduction=reduction)


class DistributedContrastiveLoss(SimpleContrastiveLoss):
    """The same over the queries and passages of all processes, the same number on each.

    As the original's, its gradient is that of the loss for the own rows: `DistributedDataParallel` leaves the gradient
    of the loss divided by the number of processes.

    Args:
        n_hard_negatives: as there.

    Raises:
        ValueError: `torch.distributed` is not initialised.
    """

    _not_here = ("gather_tensor",)

    def __init__(self, n_hard_negatives: int = 0) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError("DistributedContrastiveLoss needs torch.distributed.init_process_group first")
        super().__init__(n_hard_negatives)

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The loss, of queries and passages of this process.

        Raises:
            NotImplementedError: a ``target``, which would be one for the queries of all processes, or
                ``reduction="none"``, their losses.
            TypeError: as there.
            ValueError: as there, or arguments that differ between processes.
        """
        group, name = Group(grad_scale="sum"), "DistributedContrastiveLoss"
        return passage_loss(name, x, y, target, each=self.target_per_qry, reduction=reduction, group=group)


class ContrastiveLossWithQueryClosure(PlainDropIn):
    """`SimpleContrastiveLoss` whose queries may be made by a function when the loss is: without a cache of their own.

    Args:
        n_hard_negatives: as there.
    """

    def __init__(self, n_hard_negatives: int = 0) -> None:
        check_integer("n_hard_negatives", n_hard_negatives, 0)
        self.target_per_qry = n_hard_negatives + 1

    def __call__(
        self,
        *reps: Tensor,
        query_closure: Callable[[], Tensor] | None = None,
        target: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """The loss of queries and passages, or of passages alone and a ``query_closure`` that returns the queries.

        Raises:
            ValueError: neither of the two, or as there.
        """
        if len(reps) != (2 if query_closure is None else 1):
            raise ValueError(
                f"give queries and passages, or passages and a query_closure, got {len(reps)} tensors and "
                f"query_closure={query_closure!r}"
            )
        x, y = reps if query_closure is None else (query_closure(), reps[0])
        return SimpleContrastiveLoss(self.target_per_qry - 1)(x, y, target, reduction)


def _is_call(model_input: Any) -> bool:
    """Whether an input is the arguments and the keywords of a call."""
    return isinstance(model_input, tuple) and [type(part) for part in model_input] == [list, dict]


def _cut(tensors: list[Tensor], chunk_size: int) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of each chunk."""
    if len({len(tensor) for tensor in tensors}) > 1:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"the tensors of an input must have the same leading dimension, got shapes {shapes}")
    return zip(*(tensor.split(chunk_size) for tensor in tensors), strict=True)
