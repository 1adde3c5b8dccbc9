"""Every use of every loss that the table has, next to its textbook formula: what the tests loop over."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import oracle
import torch
from torch import Tensor

from hyperkern.catalog import LOSSES, TABLE, Loss, Use, use


class Case(NamedTuple):
    """A loss with its options.

    Attributes:
        name: for the test id.
        roles: what its tensors are called where they are arguments; see `tensors`.
        ours: ``(*tensors, backend=None) -> tuple of outputs``.
        truth: ``(*tensors) -> tuple of outputs``, by `oracle`.
        loss: its row of the table.
        use: its options.
        peers: further textbook ways to write ``truth``, for the comparison of errors in low precision.
        largest_lse: what its log-sum-exps reach, where that is several hundred or several of them are joined.
    """

    name: str
    roles: tuple[str, ...]
    ours: Callable[..., tuple[Tensor, ...]]
    truth: Callable[..., tuple[Tensor, ...]]
    loss: Loss
    use: Use
    peers: tuple[Callable[..., tuple[Tensor, ...]], ...] = ()
    largest_lse: float = 0.0

    @property
    def in_float64(self) -> bool:
        """Whether it is computed in float64 whatever the input, which a backend without float64 refuses."""
        return "uniform" in self.name and "raw" in self.name

    @property
    def least_rows(self) -> int:
        """The fewest rows it accepts; against a queue one will do."""
        return self.loss.least_rows if "self" in self.name or not ("y" in self.roles and self.loss.own_columns) else 1

    def rows(self, role: str, m: int, n: int) -> int:
        """How many rows a tensor has: M as ``x`` has, or N as a queue."""
        of = rows_of(role)
        return n if of == "negatives" or (of == "y" and self.loss.own_columns) else m


def rows_of(role: str) -> str:
    """The argument whose rows, or one number for each of them, an input has."""
    return {"negative": "negatives", "y": "y"}.get(role.split("_")[0].removesuffix("s"), "x")


# Index in the batch of the first row at hand: other than 0 on a rank that has a part of it.
first_row = 0


def same_sample(x: Tensor) -> Tensor:
    """Ids of which some occur twice."""
    index = torch.arange(first_row, first_row + x.shape[-2], device=x.device)
    return (index // 2 * 2 % 7).expand(x.shape[:-1])


def ids(x: Tensor, last: int = 99) -> Tensor:
    """Three groups and a last row of its own, so that no row of the other side is left without a candidate."""
    values = torch.arange(x.shape[-2], device=x.device) % 3
    values[-1] = last
    return values.expand(x.shape[:-1])


# Integers are made where a loss is called, of the rows they belong to.
INTEGERS: dict[str, Callable[[Tensor], Tensor]] = {
    "ids": same_sample,
    "labels": same_sample,
    "negative_ids": ids,
    "y_labels": ids,
    "x_ids": partial(ids, last=98),
    "y_ids": ids,
}


def with_integers(use: Use, tensors: Sequence[Tensor], made: dict[str, Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """What a use is given: the tensors, and integers in their places."""
    rest = iter(tensors)
    given = [None if name in made else next(rest) for name in use.inputs]
    rows = dict(zip(use.inputs, given, strict=True))
    found = [
        made[name](rows[rows_of(name)]) if tensor is None else tensor
        for name, tensor in zip(use.inputs, given, strict=True)
    ]
    return [*found, *rest]


def case_of(loss: Loss, use: Use, **integers: Callable[[Tensor], Tensor]) -> Case:
    """A use of a loss, with integers of its own where they are given."""
    made, truth = INTEGERS | integers, getattr(oracle, loss.name)

    def calling(function: Callable, **more: Any) -> Callable[..., tuple[Tensor, ...]]:
        call = use.of(function)

        def run(*tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
            result = call(*with_integers(use, tensors, made), **more, **options)
            return (result,) if isinstance(result, Tensor) else tuple(result)

        return run

    peers = ()
    if "by_product" in inspect.signature(truth).parameters and use.options.get("normalize", True):
        peers = (calling(truth, by_product=True),)
    roles = (*(name for name in use.inputs if name not in made), *use.learned)
    name = f"{loss.name}-{use.name}"
    return Case(name, roles, calling(loss.function), calling(truth), loss, use, peers, _largest_lse(loss, use))


def module_of(loss: Loss, use: Use) -> tuple[torch.nn.Module, Callable[..., Any]]:
    """The module with the options of a use, the learned numbers among them, and its call with the inputs."""
    module = loss.module(**use.options, **use.learned)
    return module, use._replace(learned={}, options={}).of(module)


def _largest_lse(loss: Loss, use: Use) -> float:
    """Of large scales, and of losses that join several log-sum-exps."""
    options = use.options
    largest = max(2 * options.get("t", 0), 1 / options.get("temperature", 1), options.get("logit_scale", 0))
    if largest > 100:
        return largest
    if "hard_negatives" in use.inputs or (loss.name == "nt_xent" and "negatives" in use.inputs):
        return 8.0
    return 2.0 if loss.name == "sup_con" and use.learned else 0.0


CASES = [case_of(loss, each) for loss in LOSSES for each in loss.uses]
_ONE_CLASS = use("one_class-none", "x labels", reduction="none")
CASES.append(case_of(TABLE["sup_con"], _ONE_CLASS, labels=lambda x: torch.zeros_like(same_sample(x))))
BY_NAME = {case.name: case for case in CASES}


# The roles that are features.
FEATURES = ("x", "y", "view", "negatives", "hard_negatives")


def names(cases: Sequence[Case] = CASES) -> list[str]:
    return [case.name for case in cases]


def loss_of(name: str) -> str:
    return name.split("-")[0]


# One case of each loss, its first.
FIRST = list({loss_of(name): name for name in reversed(names())}.values())


def tensors(
    case: Case,
    m: int,
    n: int,
    d: int,
    batch: int | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The tensors of a case, drawn in float64 and rounded to ``dtype``: M rows of x and y, N of the queue."""
    draw = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)

    def make(role: str) -> Tensor:
        rows = case.rows(role, m, n)
        if role in FEATURES:
            of_row = (3,) if role == "hard_negatives" else ()
            return torch.randn(*lead, rows, *of_row, d, generator=draw, dtype=torch.float64)
        if role.endswith("log_weights"):
            return torch.randn(*lead, rows, generator=draw, dtype=torch.float64)
        if role.endswith("_weights"):
            return torch.rand(*lead, rows, generator=draw, dtype=torch.float64) + 0.1
        return torch.tensor(case.use.learned[role], dtype=torch.float64)

    return [make(role).to(device=device, dtype=dtype) for role in case.roles]


def values_and_grads(
    function: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], seed: int = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, and the gradients of a fixed random combination of them for every argument."""
    args = [arg.detach().requires_grad_() for arg in args]
    outputs = function(*args)
    draw = torch.Generator().manual_seed(seed)
    cotangents = [
        torch.randn(out.shape, generator=draw, dtype=torch.float64).to(device=out.device, dtype=out.dtype)
        for out in outputs
    ]
    grads = torch.autograd.grad(outputs, args, cotangents)
    return [out.detach() for out in outputs], list(grads)
