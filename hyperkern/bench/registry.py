"""What can be measured: the cases and the implementations, entered by decorators."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

Loss = Callable[..., Tensor]
# Of rows N, dimension D and mode.
Count = Callable[[int, int, str], float]
# Of rows N, dimension D, dtype and device.
Draw = Callable[[int, int, str, str], list[Tensor]]

MODES = ("forward", "backward", "both")
EXECUTIONS = ("eager", "compile", "cudagraph")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class BenchError(ValueError):
    """Something asked for cannot be measured or compared; the message says what, and what it got."""


class Setup(NamedTuple):
    """One point of the matrix.

    Attributes:
        case: name of the case.
        dtype: one of `DTYPES`.
        n: rows of a feature tensor.
        d: their dimension.
        mode: one of `MODES`.
        device: a device, as text.
    """

    case: str
    dtype: str
    n: int
    d: int
    mode: str
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """A loss, its textbook formula and the least that it takes.

    Attributes:
        name: how it is called.
        inputs: number of feature tensors, each ``(N, D)``.
        truth: the textbook formula of them and of what is drawn besides, run in float64 as the gate; ``None`` for a
            yardstick, which has none.
        flops: the least arithmetic, of N, D and mode.
        counted: in words, what ``flops`` counts.
        baseline: name of the implementation that the others are set against.
        unit: whether the rows that it is given have unit length.
        copies: how often a feature tensor goes to or from memory at least, by mode.
        queue: rows of a tensor ``(K, D)`` behind the features, the same number for every N: of unit length, and without
            a gradient. 0 for none.
        classes: of how many classes the rows of the features are, at most half of the rows; then their labels ``(N,)``,
            integers, come next. 0 for none.
        scalars: values of learnable numbers, each a tensor ``()`` with a gradient, at the end.
        own: draws something else than feature tensors, of N, D, dtype and device, in place of all of these.
    """

    name: str
    inputs: int
    truth: Loss | None
    flops: Count
    counted: str
    baseline: str = "dense"
    unit: bool = False
    copies: tuple[int, int, int] = (1, 2, 2)
    queue: int = 0
    classes: int = 0
    scalars: tuple[float, ...] = ()
    own: Draw | None = None

    def draw(self, n: int, d: int, dtype: str, device: str, *, most_queue: int | None = None) -> list[Tensor]:
        """Random feature tensors, since zeros would let a processor draw less power, and what else the case has.

        They are the same at every call, in every process: the values of implementations can be compared.

        Args:
            n: rows of a feature tensor.
            d: their dimension.
            dtype: one of `DTYPES`.
            device: where.
            most_queue: rows of the queue that are enough, by default all.
        """
        if self.own is not None:
            return self.own(n, d, dtype, device)
        generator, kind = torch.Generator(device).manual_seed(0), DTYPES[dtype]
        single = torch.promote_types(kind, torch.float32)
        drawn = torch.randn(self.inputs, n, d, generator=generator, device=device)
        drawn = (torch.nn.functional.normalize(drawn, dim=-1) if self.unit else drawn).to(kind)
        found = [features.clone().requires_grad_() for features in drawn.unbind()]
        if self.queue:
            rows = self.queue if most_queue is None else min(self.queue, most_queue)
            queue = torch.randn(rows, d, generator=generator, device=device).to(single)
            found.append(torch.nn.functional.normalize(queue, dim=-1).to(kind))
        if self.classes:
            found.append(torch.arange(n, device=device) % min(self.classes, n // 2))
        # A model keeps its own numbers in float32 where its features are in half precision.
        return found + [torch.tensor(s, dtype=single, device=device).requires_grad_() for s in self.scalars]

    def least_bytes(self, setup: Setup) -> float:
        """What must go to or from memory: features and queue once, and gradients once where there are any."""
        rows = self.inputs * self.copies[MODES.index(setup.mode)] * setup.n + self.queue
        return float(rows * setup.d * DTYPES[setup.dtype].itemsize)


@dataclass(frozen=True)
class Implementation:
    """A way to compute a case.

    Attributes:
        case: name of the case.
        name: how it is called, unique within the case.
        make: makes the loss; whatever it needs from its package is imported there.
        package: the distribution it comes from.
        module: the module whose absence means that the package is not installed.
        devices: device types it runs on.
        dtypes: those it takes.
        modes: those it can be driven in.
        most_rows: beyond these N it would take all memory, or all day.
        multiple_of: of which number D must be a multiple.
        rows_multiple_of: of which number N must be one.
        slowdown: a guess of the time as a multiple of the floor, for plans only.
        first_s: a guess of the seconds that it takes to get ready for a dimension, for plans only.
        flops: where it is a yardstick with arithmetic of its own.
        compiled: whether `make` hands out a compiled function, which must be made again for each shape.
    """

    case: str
    name: str
    make: Callable[[], Loss]
    package: str = "torch"
    module: str = "torch"
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = tuple(DTYPES)
    modes: tuple[str, ...] = MODES
    most_rows: int = 1 << 40
    multiple_of: int = 1
    rows_multiple_of: int = 1
    slowdown: float = 8.0
    first_s: float = 0.0
    flops: Count | None = None
    compiled: bool = False

    def loss(self, execution: str = "eager") -> Loss:
        """Makes the loss, compiled where that is the execution."""
        made = self.make()
        return torch.compile(made, dynamic=False) if execution == "compile" else made

    @property
    def version(self) -> str | None:
        """Of its package; ``None`` where it has none."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def unavailable(self) -> str | None:
        """Why it cannot be imported here, or ``None``."""
        if find_spec(self.module.split(".")[0]) is None:
            if self.package == "hyperkern":  # a drop-in, set beside what it replaces
                return f"{self.module} is not installed"
            return f"{self.package} is not installed (pip install {self.package})"
        return None

    def refusal(self, setup: Setup, *, here: bool = True) -> str | None:
        """Why it is not measured at this point, or ``None``; not ``here``, what is installed does not count."""
        device = setup.device.split(":")[0]
        modes, dtypes = ", ".join(self.modes), ", ".join(self.dtypes)
        reasons = (
            device not in self.devices and f"runs on {' and '.join(self.devices)} only, got {device}",
            here and self.unavailable(),
            setup.dtype not in self.dtypes and f"takes {dtypes} only, got {setup.dtype}",
            setup.mode not in self.modes and f"can be driven in mode {modes} only, got {setup.mode}",
            setup.n > self.most_rows and f"takes too much memory or time beyond {self.most_rows} rows, got {setup.n}",
            setup.d % self.multiple_of and f"needs D to be a multiple of {self.multiple_of}, got {setup.d}",
            setup.n % self.rows_multiple_of and f"needs N to be a multiple of {self.rows_multiple_of}, got {setup.n}",
        )
        return next((str(reason) for reason in reasons if reason), None)


CASES: dict[str, Case] = {}
IMPLEMENTATIONS: dict[tuple[str, str], Implementation] = {}


def case(name: str, **attributes: Any) -> Callable[[Loss], Loss]:
    """Registers the decorated textbook formula as a case.

    Args:
        name: of the case; a name that is taken is refused.
        attributes: the others of `Case`; ``inputs``, ``flops`` and ``counted`` are required.

    Raises:
        BenchError: the name is taken.
    """

    def enter(truth: Loss) -> Loss:
        add_case(Case(name=name, truth=truth, **attributes))
        return truth

    return enter


def add_case(found: Case) -> None:
    """Registers a case.

    Raises:
        BenchError: the name is taken.
    """
    if found.name in CASES:
        raise BenchError(f"there is a case {found.name!r} already")
    CASES[found.name] = found


def implementation(
    of: str, name: str, *, package: str = "torch", module: str | None = None, **attributes: Any
) -> Callable[[Callable[[], Loss]], Callable[[], Loss]]:
    """Registers the decorated function, which makes a loss of the case's tensors and imports what that needs.

    Args:
        of: name of the case.
        name: of the implementation.
        package: the distribution it comes from.
        module: the module whose absence means that the package is not installed, by default named as the package.
        attributes: the others of `Implementation`.

    Raises:
        BenchError: the case is unknown, or the name taken.
    """

    def enter(make: Callable[[], Loss]) -> Callable[[], Loss]:
        if of not in CASES:
            raise BenchError(f"there is no case {of!r}; there are {', '.join(CASES)}")
        if (of, name) in IMPLEMENTATIONS:
            raise BenchError(f"case {of!r} has an implementation {name!r} already")
        found = Implementation(of, name, make, package, module or package.replace("-", "_"), **attributes)
        IMPLEMENTATIONS[of, name] = found
        return make

    return enter


def implementations(of: str, names: Iterable[str] | None = None) -> list[Implementation]:
    """Those of a case in the order of entry, the baseline first; with ``names`` only those, and the baseline.

    The baseline is among them in any case, since the others are set against it.
    """
    found = [each for (name, _), each in IMPLEMENTATIONS.items() if name == of]
    baseline = CASES[of].baseline
    if names is not None:
        wanted = {*names, baseline}
        found = [each for each in found if each.name in wanted]
    return sorted(found, key=lambda each: each.name != baseline)
