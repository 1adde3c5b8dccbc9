"""The backends and the one place where one of them is chosen.

A backend is a module with the functions of `Backend`. Adding one means: write the module, put its name into
`PRIORITY`.
"""

import functools
import importlib
import os
from collections.abc import Collection
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ..check import first_use
from ..spec import LossInputs, LossSpec, PairSpec, PairTerms

# From the most to the least specialised: `select` takes the first that can do the job.
PRIORITY: tuple[str, ...] = ("cuda", "triton", "reference")

ENVIRONMENT_VARIABLE = "HYPERKERN_BACKEND"


class Problem(NamedTuple):
    """What a backend is asked for, and all it may base a refusal on.

    Attributes:
        primitive: one of ``prepare``, ``normalize_backward``, ``row_lse``, ``pair_grad``, ``energy``;
            ``loss`` for a whole loss.
        device: where the operands are.
        dtype: dtype of the operand ``x``.
        dim: feature dimension D.
        spec: the pairwise problem; ``None`` for the row-wise primitives and for a whole loss.
        kind: how the operands are multiplied, ``bfloat16``, ``float16``, ``tf32`` or ``float32``; empty where nothing
            is, as in the row-wise primitives.
    """

    primitive: str
    device: torch.device
    dtype: torch.dtype
    dim: int
    spec: PairSpec | None = None
    kind: str = ""


class LogSumExp(NamedTuple):
    """What `Backend.row_lse` returns; a side that was not asked for has no elements.

    A log-sum-exp of some size has lost what its sum has beyond the last digit. That is nothing to the loss, but weights
    ``exp(l - lse)`` would all be off by one factor: it goes with them, as part of the row's own factor.

    Attributes:
        row: ``log sum_j exp(l_ij)`` ``(B, M)``; -inf for a row without any pair.
        col: ``log sum_i exp(l_ij)`` ``(B, N)``.
        row_rounding: ``(B, M)``, what makes ``sum_j exp(l_ij - row_i) row_rounding_i`` exactly 1; 1 without any pair.
        col_rounding: ``(B, N)``, likewise.
    """

    row: Tensor
    col: Tensor
    row_rounding: Tensor
    col_rounding: Tensor


def log_sum_exp(
    total: Tensor, top: Tensor | None = None, unit: float = 1.0, u: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of a sum of exponentials and its rounding, see `LogSumExp`.

    Args:
        total: ``(B, M)``, the sums; relative to ``top`` if there is one.
        top: ``(B, M)``, the largest logits; -inf for a row without any pair.
        unit: that of ``top``, in which weights subtract the log-sum-exp too.
        u: ``(B, M)``, log-weights of the rows that are not in the sums yet; weights take them with the log-sum-exp.
    """
    if top is None:
        lse = total.log()
        relative = lse.exp()
    else:
        lse = top / unit + total.log()
        lse = lse if u is None else lse + u
        shift = (lse if u is None else lse - u) * unit
        relative = ((shift - top.masked_fill(total == 0, 0)) / unit).exp_()
    return lse, relative.div_(total).masked_fill_(lse == -torch.inf, 1)


class WholeLoss(NamedTuple):
    """What `Backend.loss` returns.

    Attributes:
        values: the outputs, ``()`` or ``(B,)``.
        state: what `Backend.loss_grad` needs beside the inputs that get a gradient.
        rows: by name, copies of features that get none, normalised or not, in place of those that may change until a
            second derivative is asked for.
    """

    values: tuple[Tensor, ...]
    state: tuple[Tensor, ...]
    rows: dict[str, Tensor]


class Backend(Protocol):
    """The contract of a backend. Shapes: ``x (B, M, D)``, ``y (B, N, D)``; ``y = None`` means ``y = x``.

    Sums, gradients and unit rows are float64 for float64 operands and float32 for all others, accumulated in that
    precision. An output that was not asked for has no rows: ``(B, 0, D)`` or ``(B, 0)``. With ``y = None`` the
    problem is symmetric: the logit is ``scale * <x_i, x_j> + u_i + u_j``, there is no column side, and the row side
    holds the whole answer.

    The only option is `LOSSES`: `loss` and `loss_grad` are asked for the losses named there alone. A backend that names
    none may raise in both.
    """

    @property
    def LOSSES(self) -> Collection[str]:
        """The losses that the backend computes as a whole; the others are compositions of the primitives."""
        ...

    def unsupported(self, problem: Problem) -> list[str]:
        """The reasons why this backend cannot serve the problem; empty when it can."""
        ...

    def unverified(self, problem: Problem) -> list[str]:
        """The reasons why it is not chosen by itself for a problem that it supports; a user who names it gets it.

        Those that no check would do away with: whether it is right on a GPU, `hyperkern.check` finds out there.
        """
        ...

    def evidence(self, device: torch.device) -> str:
        """The committed result that shows it right on such a device; empty: it is checked on this machine."""
        ...

    def prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unit rows ``(B, M, D)`` of ``x`` and ``rstd = 1 / max(norm, eps)`` ``(B, M)``; a zero row stays zero."""
        ...

    def normalize_backward(self, grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
        """``rstd * (grad - <grad, unit> unit)`` in ``dtype``, within `hyperkern.spec.gradient_limit`: the gradient
        behind the normalisation.
        """
        ...

    def row_lse(self, x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, *, need_cols: bool) -> LogSumExp:
        """The log-sum-exp of the rows and, on request, of the columns."""
        ...

    def pair_grad(
        self, x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec,
        row_lse: Tensor, col_lse: Tensor | None, a: Tensor, b: Tensor | None, *, need_x: bool, need_y: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """``w_ij = a_i exp(l_ij - row_lse_i) + b_j exp(l_ij - col_lse_j)``, contracted on both sides.

        ``l_ij`` has the bits that it has in `row_lse`, on either side and in the mirror image of a symmetric problem:
        logits may be so large that their last bit is a factor of the weight.

        Returns ``sum_j w_ij y_j`` ``(B, M, D)`` and ``sum_j w_ij`` ``(B, M)`` if ``need_x``,
        ``sum_i w_ij x_i`` ``(B, N, D)`` and ``sum_i w_ij`` ``(B, N)`` if ``need_y``. A missing ``b`` is zero,
        except with ``y = None``, where ``b = a`` and ``col_lse = row_lse``.
        """
        ...

    def energy(
        self, x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, potential: str,
        *, need_x: bool, need_y: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """``sum_ij phi(l_ij)`` ``(B,)`` over all ordered pairs and, in the same pass, what `pair_grad` returns.

        The weights are ``w_ij = phi'(l_ij)``. ``potential`` is ``"exp"`` (needs ``spec.bounded``) or
        ``"softplus"``.
        """
        ...

    def loss(self, inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> WholeLoss | None:
        """A whole loss in few steps; ``None``, before anything is lost, for what is left to the composition.

        ``need`` names the fields of ``inputs`` whose gradient is wanted later.
        """
        ...

    def loss_grad(
        self,
        needed: dict[str, Tensor],
        spec: LossSpec,
        state: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> dict[str, Tensor]:
        """The gradients of the inputs ``needed``, by name, from those of the outputs, of which one at least is there.

        The other inputs are not to be had: a queue may have changed since.
        """
        ...


def load(name: str) -> Backend:
    """The backend module of that name.

    Raises:
        ImportError: it needs a package that is not installed; looked for once.
    """
    found = _imported(name)
    if isinstance(found, ImportError):
        raise found.with_traceback(None)
    return found


@functools.cache
def _imported(name: str) -> Backend | ImportError:
    try:
        return cast(Backend, importlib.import_module(f".{name}", __name__))
    except ImportError as error:
        return error


def objections(name: str, problem: Problem, *, forced: bool = False) -> list[str]:
    """The reasons against a backend, one that cannot even be imported included."""
    try:
        backend = load(name)
        return backend.unsupported(problem) or ([] if forced else backend.unverified(problem))
    except ImportError as error:
        return [f"cannot be imported ({error})"]


def forced(requested: str | None) -> tuple[str | None, str]:
    """The backend that the user forces (``None`` for none), and whether by argument or by ``HYPERKERN_BACKEND``.

    Raises:
        ValueError: an unknown name.
    """
    source = "backend"
    if requested is None:
        requested, source = os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE
    if requested is not None and requested not in PRIORITY:
        raise ValueError(f"{source}={requested!r} is unknown; choose one of {', '.join(PRIORITY)}")
    return requested, source


def select(requested: str | None, problem: Problem) -> Backend:
    """Chooses the backend for a problem.

    Args:
        requested: a name that the user forces; else the environment variable ``HYPERKERN_BACKEND``, else the
            first of `PRIORITY` that can serve the problem and is verified there.
        problem: what is to be computed.

    Raises:
        ValueError: an unknown name, or no backend left, with the reasons of each: a forced one never falls back.
    """
    asked = forced(None) if requested is None else (requested, "backend")
    return chosen(*asked, problem) or provisional(problem)


@functools.lru_cache(maxsize=1024)
def chosen(name: str | None, source: str, problem: Problem) -> Backend | None:
    """`select`, of what `forced` has found: asked for each problem once, since a loss chooses at every call.

    Returns:
        ``None`` where a better backend may be chosen later: until then it is `provisional`.
    """
    backend, settled = _first(problem) if name is None else (load(candidates(name, source, problem)[0]), True)
    return backend if settled else None


def provisional(problem: Problem) -> Backend:
    """The choice as long as a better backend cannot be checked; `chosen` is asked again."""
    backend, settled = _first(problem)
    if settled:
        chosen.cache_clear()
    return backend


def candidates(name: str | None, source: str, problem: Problem) -> list[str]:
    """Who can serve a problem, in order of preference, and whether or not it has been found right on this machine.

    Args:
        name: the only one that may, where one is forced.
        source: who forces it.
        problem: what is to be computed.

    Raises:
        ValueError: nobody can, or the name is unknown.
    """
    if name is not None:
        forced(name)  # raises for an unknown one
    refusals = {}
    for candidate in PRIORITY if name is None else (name,):
        refusals[candidate] = "; ".join(objections(candidate, problem, forced=name is not None))
    if found := [candidate for candidate, reasons in refusals.items() if not reasons]:
        return found
    if name is not None:
        raise ValueError(f"{source}={name!r} cannot compute {problem.primitive}: {refusals[name]}")
    listed = " | ".join(f"{candidate}: {reasons}" for candidate, reasons in refusals.items())
    raise ValueError(f"no backend can compute {problem.primitive}: {listed}")


def _first(problem: Problem) -> tuple[Backend, bool]:
    """The first that serves a problem and is known to be right here, and whether that stays so."""
    settled, found = True, []
    for name in candidates(None, "", problem):
        backend = load(name)
        if backend.evidence(problem.device):
            return backend, settled
        found.append(first_use.verdict(name, problem.device, problem.kind, problem.dim))
        if found[-1].usable:
            return backend, settled
        settled = settled and found[-1].settled
    reasons = " | ".join(each.reason for each in found)
    raise ValueError(f"no backend that can compute {problem.primitive} is known to be right here: {reasons}")


def backend_info() -> dict[str, Any]:
    """What was found on this machine, which backends are usable there, and why not. Nothing is checked for it.

    Returns:
        ``versions`` (torch, CUDA, Triton; ``None`` where absent), ``gpus`` (name and compute capability), ``forced``
        (the value of ``HYPERKERN_BACKEND`` or ``None``), ``check`` (that of ``HYPERKERN_CHECK``), ``backends``: for
        each name, in order of preference, and each device type found, the list of reasons against it for a float32
        problem (empty: usable); and ``records``: for each that is usable on the GPUs at hand, what is known of it.
    """
    gpus = [
        {"name": torch.cuda.get_device_name(i), "capability": torch.cuda.get_device_capability(i)}
        for i in range(torch.cuda.device_count())
    ]
    devices = ["cpu"] + (["cuda"] if gpus else [])
    try:
        triton_version = importlib.import_module("triton").__version__
    except ImportError:
        triton_version = None
    probes = {
        device: Problem("energy", torch.device(device), torch.float32, 128, PairSpec(scale=4.0, bounded=True))
        for device in devices
    }
    reasons = {name: {device: objections(name, probe) for device, probe in probes.items()} for name in PRIORITY}
    return {
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton_version},
        "gpus": gpus,
        "forced": os.environ.get(ENVIRONMENT_VARIABLE) or None,
        "check": first_use.mode(),
        "backends": reasons,
        "records": {
            name: _records(name) for name in PRIORITY if gpus and name != "reference" and not reasons[name]["cuda"]
        },
    }


def _records(name: str) -> list[str]:
    """What is known of a backend on each model of GPU."""
    found: dict[str, None] = {}
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        if evidence := load(name).evidence(device):
            found[f"{torch.cuda.get_device_name(i)}: shown right by {evidence}"] = None
        else:
            found |= dict.fromkeys(first_use.told(name, device))
    return list(found)
