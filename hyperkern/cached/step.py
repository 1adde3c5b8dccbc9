"""`cached_step`: one training step in two passes over chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .batches import Batch, Embeddings, Encoder
from .replay import Buffers, Held, RandomState, generating, hold, write_back
from .wrappers import Wrappers, devices_of, modules_behind


def cached_step(
    encoders: Encoder | Sequence[Encoder],
    inputs: Any,
    loss: Callable[..., Any],
    *,
    chunk_size: int | Sequence[int],
    scale: Callable[[Tensor], Tensor] | None = None,
    sync_gradients: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    r"""Loss and gradients of a batch of any size, in the memory that encoding a chunk takes.

    .. math::
        \frac{\partial L}{\partial \theta} = \sum_k \Bigl( \frac{\partial L}{\partial E_k} \Bigr)^{\!\top}
            \frac{\partial E_k}{\partial \theta}, \qquad E_k = f_\theta(X_k)

    Every chunk is encoded, without keeping a graph; the loss of all embeddings :math:`E` is computed once, and its
    gradient; then each chunk is encoded again, with a graph, and its rows of that gradient are propagated back.
    Gradients are added to ``.grad`` as by ``loss.backward()``, of the encoders, of the loss (a learned temperature) and
    of inputs that require one; call the optimiser afterwards::

        result = hyperkern.cached_step(encoder, [x, y], hyperkern.align_uniform, chunk_size=256)
        optimizer.step()

    Beyond inputs and parameters it takes the memory of one chunk's graph, of the embeddings and their gradient, and of
    the loss, which is O(N D) for those of this package. It takes the time of one more forward pass. (The first chunk of
    an input has a graph also the first time; it shows which outputs need a gradient, and is dropped.)

    **The same gradients** as those of the loss of embeddings that were made in chunks, and so as those of one large
    batch wherever the encoder treats each sample by itself. Batch normalisation does not: its statistics are those of a
    chunk, as they are with any smaller batch; `torch.nn.SyncBatchNorm` likewise.

    **What is encoded twice** sees the same random numbers and buffers both times, so dropout is the same; afterwards
    the generators (of the CPU and of the devices where inputs and modules are) and the buffers of modules in training
    mode are as after the first time. Running statistics are thus updated once for each chunk, and the generators are
    where one forward pass in chunks and the loss would leave them. Other state, such as counters in Python, is changed
    twice; hooks on gradients run for each chunk.

    **Modules** are found in an encoder that is one, in bound methods, in `functools.partial`, in attributes of callable
    objects, and in functions, where they close over one or name a global one. Wrap what lies deeper in a module.

    **Mixed precision.** Call it inside of ``torch.autocast``: the encoders and the loss run under it, backward passes
    do not. With a `torch.amp.GradScaler` give ``scale=scaler.scale``, and go on with ``scaler.step(optimizer)``.

    **Ranks.** With DDP or FSDP (`torch.distributed.fsdp.fully_shard`) the encoders are the wrapped modules, or call
    them. Each wrapper reduces its gradients once, with the last chunk that it encodes, and broadcasts its buffers once.
    An outer ``no_sync`` of DDP holds; FSDP's flags are left as by default. Where an encoder communicates in its forward
    pass (FSDP, `torch.nn.SyncBatchNorm`) all ranks need the same number of chunks. DDP with ``static_graph=True`` is
    refused.

    Args:
        encoders: a callable, a module as a rule, for all inputs, or a list or tuple of one for each input. It is called
            with one argument, the chunk of the input, and returns a floating tensor ``(n, ...)`` for its n rows, or any
            structure of dicts, tuples and lists with such tensors. Scalars (0-dimensional tensors) in it are averaged
            over the rows of all chunks, which is exact for what does not depend on the rows, such as a learned
            temperature, and for means over rows. Everything else is taken from the first chunk.
        inputs: a list or tuple with one input for each argument of the loss, or, for one, a tensor or dict alone. An
            input is a tensor ``(N, ...)`` or a structure with such tensors, of any dtype and device, N >= 1, which may
            differ between inputs. Tensors without dimensions and everything else are handed on as they are.
        loss: called with the whole of what the encoders returned, ``loss(*embeddings)``. It returns a scalar tensor, a
            named tuple with a field ``loss`` or a mapping with the key ``"loss"`` that is one.
        chunk_size: rows that are encoded together, >= 1, for all inputs or for each. The last chunk may be shorter.
        scale: applied to the loss before the backward pass, not to what is returned: ``scaler.scale``, or for gradient
            accumulation ``lambda loss: loss / steps``.
        sync_gradients: whether DDP and FSDP reduce gradients over ranks in this step; ``False`` for all but the last
            one of a gradient accumulation.
        progress: called as ``progress(done, total)`` after each chunk, of both passes.

    Returns:
        What ``loss`` returned, detached.

    Raises:
        TypeError: ``encoders``, ``loss``, ``scale`` or ``progress`` is not callable, a ``chunk_size`` is no integer, an
            input or output has no tensor of rows, the loss returns none of the above.
        ValueError: ``chunk_size < 1``, as many chunk sizes or encoders as there are inputs are not given, an input is
            empty, or its tensors differ in their leading dimension; an encoder returns another number of rows than it
            was given, rows that differ between chunks in shape, dtype, device or structure, embeddings on a device on
            which it has no input or module, or writes into its input; the loss is no scalar or does not require a
            gradient; gradients are disabled. All this is raised before any gradient is changed, unless an encoder
            returns something else the second time.

    Source:
        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
    """
    batches = _batches(encoders, inputs, chunk_size)
    for name, function, optional in (("loss", loss, False), ("scale", scale, True), ("progress", progress, True)):
        if not (callable(function) or (optional and function is None)):
            hint = ": give its method scale" if isinstance(function, torch.amp.GradScaler) else ""
            raise TypeError(f"{name} must be callable, got {type(function).__name__}{hint}")
    if not torch.is_grad_enabled():
        raise ValueError("cached_step needs gradients enabled, got torch.is_grad_enabled() == False")
    step = _Step(batches, sync_gradients, progress)
    step.encode()
    result = step.differentiate(loss, scale)
    step.encode_again()
    return result


class _Step:
    """The three parts of a step, and what they hand on."""

    def __init__(self, batches: list[Batch], sync: bool, progress: Callable[[int, int], None] | None) -> None:
        behind = [modules_behind(batch.encoder) for batch in batches]
        self._batches = batches
        self._wrappers = Wrappers(behind, sync)
        self._buffers = [Buffers(m for module in modules for m in module.modules()) for modules in behind]
        modules = [module for modules in behind for module in modules]
        places = [place for batch in batches for place in batch.devices()]
        self._devices = generating([*places, *devices_of(modules)])
        self._embeddings = [Embeddings(batch) for batch in batches]
        self._gradients: list[list[Tensor | None]] = []
        self._before: dict[tuple[int, int], tuple[RandomState, list[Held]]] = {}
        self._changed: dict[Any, None] = {}
        self._report, self._done, self._total = progress, 0, 2 * sum(batch.count for batch in batches)

    def encode(self) -> None:
        """Encodes all chunks and notes what each one starts from."""
        torch.clear_autocast_cache()  # what was cast without a graph before would take gradients from the outputs
        state = None
        for i, batch in enumerate(self._batches):
            for chunk in range(batch.count):
                state, copies = RandomState(self._devices, state), self._buffers[i].before()
                if chunk == 0:
                    with self._wrappers.watched(i):
                        self._encode(i, chunk)
                    self._check_devices(i)
                else:
                    with torch.no_grad():
                        self._encode(i, chunk)
                kept, changed = self._buffers[i].after(copies)
                self._before[i, chunk] = (state, kept)
                self._changed.update(dict.fromkeys(changed))
                self._progress(1)
            batch.check_unchanged()
        # Cast without a graph: the second time the encoders would have no gradients.
        torch.clear_autocast_cache()

    def differentiate(self, loss: Callable[..., Any], scale: Callable[[Tensor], Tensor] | None) -> Any:
        """Computes the loss and its gradients for the embeddings and for its own parameters."""
        with self._wrappers.loss_pass():
            result = loss(*(embeddings.for_loss() for embeddings in self._embeddings))
            value = _check_scalar("loss", _value(result))
            with self._without_autocast():
                scaled = value if scale is None else _check_scalar("scale", scale(value))
                torch.autograd.backward(scaled)
        self._gradients = [embeddings.gradients() for embeddings in self._embeddings]
        return tree_map_only(Tensor, Tensor.detach, result)

    def encode_again(self) -> None:
        """Encodes all chunks as the first time and propagates their gradients back."""
        after, buffers = RandomState(self._devices), hold(self._changed)
        active = [i for i, gradients in enumerate(self._gradients) if any(g is not None for g in gradients)]
        self._wrappers.plan({i: self._batches[i].count for i in active})
        try:
            for i, batch in enumerate(self._batches):
                if i not in active:
                    self._progress(batch.count)
                    continue
                for chunk in range(batch.count):
                    state, copies = self._before.pop((i, chunk))
                    state.restore()
                    write_back(copies)
                    self._propagate(i, chunk)
                    self._progress(1)
                self._gradients[i] = []
        finally:
            after.restore()
            write_back(buffers)
        rest = self._wrappers.left_over() + [pair for batch in self._batches for pair in batch.gradients()]
        if rest:
            with self._without_autocast():
                torch.autograd.backward([tensor for tensor, _ in rest], [gradient for _, gradient in rest])

    def _encode(self, i: int, chunk: int) -> None:
        value, _ = self._batches[i].chunk(chunk)
        self._embeddings[i].add(chunk, self._batches[i].encoder(value))

    def _propagate(self, i: int, chunk: int) -> None:
        batch = self._batches[i]
        value, differentiable = batch.chunk(chunk)
        with self._wrappers.turn(i, chunk) as from_loss:
            outputs, gradients = self._embeddings[i].pairs(chunk, batch.encoder(value), self._gradients[i])
            for parameter, gradient in from_loss:
                outputs.append(parameter)
                gradients.append(gradient)
            if outputs:
                with self._without_autocast():
                    torch.autograd.backward(outputs, gradients)
        torch.clear_autocast_cache()  # its graph has been used
        batch.keep_gradients(chunk, differentiable)

    @contextlib.contextmanager
    def _without_autocast(self) -> Iterator[None]:
        """As a backward pass after the ``with`` block of autocast: it runs in the dtypes of the forward pass."""
        with contextlib.ExitStack() as stack:
            for kind in dict.fromkeys(["cpu", *(device.type for device in self._devices)]):
                if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    def _check_devices(self, i: int) -> None:
        for device in generating(self._embeddings[i].devices()):
            if device not in self._devices:
                raise ValueError(
                    f"the encoder of {self._batches[i].name} must be a module, or its input on its device: it returned "
                    f"embeddings on {device}, whose random numbers were not noted"
                )

    def _progress(self, chunks: int) -> None:
        self._done += chunks
        if self._report is not None:
            self._report(self._done, self._total)


def _batches(encoders: Any, inputs: Any, chunk_size: Any) -> list[Batch]:
    """The inputs with their encoders and chunk sizes."""
    values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not values:
        raise ValueError("inputs must have at least one input, got none")
    calls = list(encoders) if isinstance(encoders, (list, tuple)) else [encoders] * len(values)
    sizes = list(chunk_size) if isinstance(chunk_size, (list, tuple)) else [chunk_size] * len(values)
    for name, given in (("encoders", calls), ("chunk_size", sizes)):
        if len(given) != len(values):
            raise ValueError(f"{name} must be one, or one for each of the {len(values)} inputs, got {len(given)}")
    for call in calls:
        if not callable(call):
            raise TypeError(f"encoders must be callable, got {type(call).__name__}")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"chunk_size must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"chunk_size must be >= 1, got {size}")
    return [
        Batch(f"inputs[{i}]", call, value, size)
        for i, (call, value, size) in enumerate(zip(calls, values, sizes, strict=True))
    ]


def _value(result: Any) -> Any:
    """The loss in what a loss returned."""
    if isinstance(result, Mapping) and "loss" in result:
        return result["loss"]
    if isinstance(result, tuple) and hasattr(result, "loss"):
        return result.loss
    if isinstance(result, Tensor):
        return result
    raise TypeError(
        "loss must return a scalar tensor, a named tuple with a field loss, or a mapping with the key 'loss', "
        f"got {type(result).__name__}"
    )


def _check_scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must give a scalar tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"{name} must give a scalar, got shape {tuple(value.shape)}")
    if not value.requires_grad:
        raise ValueError(f"{name} must give a tensor that requires a gradient: nothing that it depends on does")
    return value
