"""The first thing to run on a new GPU: one tile of every kernel, from inputs that show which element is wrong.

``python -m tools.first_tile --backend NAME [--device cuda] [--jsonl FILE]`` asks a backend for each of its
primitives on 128 x 128 pairs and on a ragged part of a tile. Rows are one power of two each, columns are integers over
128: every logit is exact in every dtype, and no two in a row are the same. A batch of problems, in each of which one
column or one row counts, then reads the logits or the weights one by one: the report has the first row and column that
is wrong, what it should be, and what it is. Then two losses: the same bits at each of 50 repeats, on a side stream and
in a CUDA graph, and the value and gradients of many rows against float64.

Each dtype and dimension is a process of its own: a kernel that hangs or loses the GPU's context takes no other with it.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperkern
from hyperkern import backends
from hyperkern.files import append
from hyperkern.spec import NO_TERMS, PairSpec, PairTerms

from .beside import beside

# Not above 9, where weights in float16 give way to float32 (`hyperkern.backends.host.precision`).
SCALE = 8.0
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Of a logit, two of which differ by 1/32 at least; and of a weight, rounded to bfloat16, two of which differ by 3 %.
LOGIT, WEIGHT = 2e-3, 1e-2


class Sizes(NamedTuple):
    """What is asked for: pairs of a tile and of a part of one, dimensions, rows of losses, repeats, many rows."""

    shapes: tuple[tuple[int, int], ...]
    dims: tuple[int, ...]
    rows: int
    repeats: int
    many: int


SIZES = {
    "full": Sizes(((128, 128), (100, 77)), (64, 128, 192, 256, 100), 4096, 50, 20011),
    "small": Sizes(((7, 5),), (20,), 20, 2, 40),  # for the interpreter and the emulator
}


class Check(NamedTuple):
    """What a kernel gave, what it should have, and how far they may be apart: ``absolute + relative * |want|``."""

    got: Tensor
    want: Tensor
    relative: float
    absolute: float = 1e-6


def one_hot_rows(m: int, d: int) -> Tensor:
    """``(M, D)``: a power of two in a place of its own in each row, in the same places again after D rows."""
    i = torch.arange(m)
    rows = torch.zeros(m, d, dtype=torch.float64)
    rows[i, i % d] = 2.0 ** -(i // d).double()
    return rows


def integer_rows(n: int, d: int) -> Tensor:
    """``(N, D)``: integers over 128 that bfloat16 holds, of which no two in a row or a column are the same."""
    j, k = torch.arange(n)[:, None], torch.arange(d)
    return ((37 * j + 101 * k) % 251 - 125).double() / 128


def sparse_rows(m: int, d: int) -> Tensor:
    """``(M, D)`` with four integers over 256 in each: the sums of their products are exact too, and below 1."""
    i, k = torch.arange(m)[:, None], torch.arange(4)
    places = (7 * i + k * (d // 4) + i // d) % d
    return torch.zeros(m, d, dtype=torch.float64).scatter_(1, places, ((53 * i + 91 * k) % 251 - 125).double() / 256)


def one_at_a_time(count: int) -> Tensor:
    """Log-weights ``(count, count)``: in problem b all but b are left out."""
    return torch.full((count, count), -math.inf).fill_diagonal_(0)


def alone(rows: Tensor) -> Tensor:
    """``(N, N, D)``: in problem b all rows but b are zero, and so is what they contribute to a weighted sum."""
    return torch.diag_embed(rows.T).permute(1, 2, 0).contiguous()


class Tile(NamedTuple):
    """One tile's problem: a backend, where, the dtype of its products, and the shape."""

    backend: Any
    device: str
    precision: str
    m: int
    n: int
    d: int

    @property
    def x(self) -> Tensor:
        return one_hot_rows(self.m, self.d)

    @property
    def y(self) -> Tensor:
        return integer_rows(self.n, self.d)

    @property
    def logits(self) -> Tensor:
        return SCALE * self.x @ self.y.T

    def spec(self, bounded: bool, exclude: str = "none") -> PairSpec:
        return PairSpec(SCALE, bounded=bounded, exclude=exclude, precision=self.precision)

    def put(self, rows: Tensor, problems: int | None = None) -> Tensor:
        """On the device, as float32: the same for several problems, or those of a tensor that has them."""
        rows = rows.float() if problems is None else rows.float().expand(problems, *rows.shape)
        return rows.contiguous().to(self.device)


def lse_rows(t: Tile, bounded: bool) -> Iterator[Check]:
    terms = PairTerms(v=t.put(one_at_a_time(t.n)))
    found = t.backend.row_lse(t.put(t.x, t.n), t.put(t.y, t.n), terms, t.spec(bounded), need_cols=False)
    yield Check(found.row.T, t.logits, 0, LOGIT)


def lse_columns(t: Tile, bounded: bool) -> Iterator[Check]:
    terms = PairTerms(u=t.put(one_at_a_time(t.m)))
    found = t.backend.row_lse(t.put(t.x, t.m), t.put(t.y, t.m), terms, t.spec(bounded), need_cols=True)
    yield Check(found.col, t.logits, 0, LOGIT)


def symmetric_logits(t: Tile) -> tuple[Tensor, Tensor]:
    x = sparse_rows(t.m, t.d)
    return x, (SCALE * x @ x.T).fill_diagonal_(-math.inf)


def lse_symmetric(t: Tile, bounded: bool) -> Iterator[Check]:
    x, logits = symmetric_logits(t)
    found = t.backend.row_lse(t.put(x, 1), None, NO_TERMS, t.spec(bounded, "self"), need_cols=False)
    yield Check(found.row[0], logits.logsumexp(1), 0, LOGIT)


def grad_of_rows(t: Tile, bounded: bool) -> Iterator[Check]:
    """In problem b the weights of column b alone: the sum of row i is one weight times one row of y."""
    lse, b = torch.full((t.n, t.n), SCALE), torch.eye(t.n)
    row_lse, a = torch.full((t.n, t.m), SCALE), torch.zeros(t.n, t.m)
    x, y, spec = t.put(t.x, t.n), t.put(t.y, t.n), t.spec(bounded)
    sides = [t.put(each) for each in (row_lse, lse, a, b)]
    dx, sums, *_ = t.backend.pair_grad(x, y, NO_TERMS, spec, *sides, need_x=True, need_y=False)
    weights = (t.logits - SCALE).exp()
    yield Check(sums.T, weights, WEIGHT, 1e-8)
    yield Check(dx.transpose(0, 1), weights[:, :, None] * t.y, WEIGHT, 1e-8)


def grad_of_columns(t: Tile, bounded: bool) -> Iterator[Check]:
    """In problem b the weights of row b alone."""
    row_lse, a = torch.full((t.m, t.m), SCALE), torch.eye(t.m)
    x, y, spec = t.put(t.x, t.m), t.put(t.y, t.m), t.spec(bounded)
    factors = t.put(row_lse), None, t.put(a), None
    *_, dy, sums = t.backend.pair_grad(x, y, NO_TERMS, spec, *factors, need_x=False, need_y=True)
    weights = (t.logits - SCALE).exp()
    yield Check(sums, weights, WEIGHT, 1e-8)
    yield Check(dy, weights[:, :, None] * t.x[:, None], WEIGHT, 1e-8)


def grad_symmetric(t: Tile, bounded: bool) -> Iterator[Check]:
    """In problem b the factor of row b alone: row i sums one weight times row b, but row b itself, which sums all."""
    x, logits = symmetric_logits(t)
    lse, a = t.put(torch.full((t.m, t.m), SCALE)), t.put(torch.eye(t.m))
    rows, spec = t.put(x, t.m), t.spec(bounded, "self")
    dx, *_ = t.backend.pair_grad(rows, None, NO_TERMS, spec, lse, None, a, None, need_x=True, need_y=False)
    weights = (logits - SCALE).exp()
    want = weights[:, :, None] * x
    want[range(t.m), range(t.m)] = weights @ x
    # The sum of a row has rounding errors of all its weights.
    yield Check(dx.transpose(0, 1), want, WEIGHT, WEIGHT * want.abs().amax((0, 2))[:, None])


def potential_of(name: str, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Potential and weight."""
    return (logits.exp(), logits.exp()) if name == "exp" else (F.softplus(logits), logits.sigmoid())


def energy(t: Tile, name: str, side: str) -> Iterator[Check]:
    """In problem b all columns, or rows, but b are zero: a sum of the other side has one weight times row b."""
    of_rows = side == "x"
    count = t.n if of_rows else t.m
    x, y = (t.put(t.x, t.n), t.put(alone(t.y))) if of_rows else (t.put(alone(t.x)), t.put(t.y, t.m))
    spec = t.spec(name == "exp")
    found = t.backend.energy(x, y, NO_TERMS, spec, name, need_x=of_rows, need_y=not of_rows)
    value, weight = potential_of(name, t.logits)
    zero = potential_of(name, torch.zeros((), dtype=torch.float64))[0]
    yield Check(found[0], value.sum(0 if of_rows else 1) + (count - 1) * (t.m if of_rows else t.n) * zero, 1e-4)
    if of_rows:
        yield Check(found[1].transpose(0, 1), weight[:, :, None] * t.y, WEIGHT)
    else:
        yield Check(found[3], weight[:, :, None] * t.x[:, None], WEIGHT)


def energy_symmetric(t: Tile, name: str, need_x: bool) -> Iterator[Check]:
    x, logits = symmetric_logits(t)
    spec = t.spec(name == "exp", "self")
    total, dx, *_ = t.backend.energy(t.put(x, 1), None, NO_TERMS, spec, name, need_x=need_x, need_y=False)
    value, weight = potential_of(name, logits)
    yield Check(total, value.sum()[None], 1e-4)
    if need_x:
        # By symmetry a row counts on both sides: the contract sums ordered pairs, each row once.
        want = weight @ x
        yield Check(dx[0], want, WEIGHT, WEIGHT * want.abs().max())


def prepare(t: Tile) -> Iterator[Check]:
    """3 and 4 in each row, times a number of its own: 5 times as long, and 0.6 and 0.8 of that."""
    i = torch.arange(t.m)
    length = (1 + i % 16).double()
    rows = torch.zeros(t.m, t.d, dtype=torch.float64)
    rows[i, i % t.d], rows[i, (i + 1) % t.d] = 3 * length, 4 * length
    unit, rstd = t.backend.prepare(t.put(rows, 1).to(DTYPES[t.precision]))
    yield Check(rstd[0], 1 / (5 * length), 1e-5)
    yield Check(unit[0], rows / (5 * length)[:, None], 1e-5)


def normalize_backward(t: Tile) -> Iterator[Check]:
    """Behind a unit row of one number the gradient has a zero in its place; all others are exact."""
    i = torch.arange(t.m)
    unit, rstd = F.one_hot(i % t.d, t.d).double(), 2.0 ** -(i % 4).double()
    grad = integer_rows(t.m, t.d)
    found = t.backend.normalize_backward(t.put(grad, 1), t.put(unit, 1), t.put(rstd, 1), DTYPES[t.precision])
    yield Check(found[0], (rstd[:, None] * grad).where(unit == 0, 0), 0)


KERNELS: dict[str, Callable[[Tile], Iterator[Check]]] = {
    "prepare": prepare,
    "normalize_backward": normalize_backward,
    **{
        f"{name}, {'bounded' if bounded else 'running'}": partial(function, bounded=bounded)
        for name, function in (
            ("row_lse of rows", lse_rows),
            ("row_lse of columns", lse_columns),
            ("row_lse, y = x", lse_symmetric),
            ("pair_grad of rows", grad_of_rows),
            ("pair_grad of columns", grad_of_columns),
            ("pair_grad, y = x", grad_symmetric),
        )
        for bounded in (True, False)
    },
    **{
        f"energy {name}, {what}": function
        for name in ("exp", "softplus")
        for what, function in (
            ("y = x, value alone", partial(energy_symmetric, name=name, need_x=False)),
            ("y = x", partial(energy_symmetric, name=name, need_x=True)),
            ("of rows", partial(energy, name=name, side="x")),
            ("of columns", partial(energy, name=name, side="y")),
        )
    },
}


def first_wrong(check: Check) -> dict[str, Any] | None:
    """The first element that is wrong, in the order of rows, columns and elements of D; ``None`` if none is."""
    got, want = check.got.double().cpu(), check.want
    if got.shape != want.shape:
        return {"reason": f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"}
    wrong = ~((got - want).abs() <= check.absolute + check.relative * want.abs())  # so that nan is wrong
    if not wrong.any():
        return None
    index = tuple(wrong.nonzero()[0].tolist())
    expected, found = want[index].item(), got[index].item()
    return {
        "reason": f"at {index}: {found:g}, expected {expected:g}; {int(wrong.sum())} of {wrong.numel()} wrong",
        "index": index,
        "expected": expected,
        "got": found if math.isfinite(found) else str(found),  # JSON knows no infinity
    }


def run_kernel(kernel: str, tiles: list[Tile]) -> dict[str, Any] | None:
    """What is wrong with a kernel, at the first of the shapes at which it is; or ``None``."""
    for tile in tiles:
        for check in KERNELS[kernel](tile):
            if (wrong := first_wrong(check)) is not None:
                return {"shape": (tile.m, tile.n), **wrong}
    return None


LOSSES: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "uniformity": (1, hyperkern.uniformity),
    "clip": (2, partial(hyperkern.clip_loss, logit_scale=1 / 0.07)),
}


class LossRun:
    """A loss of random rows and its gradients, run in ways that must all give the same bits.

    Args:
        name: of `LOSSES`.
        backend: which one.
        device: where.
        dtype: of the features.
        n: rows.
        d: their dimension.
    """

    def __init__(self, name: str, backend: str, device: str, dtype: str, n: int, d: int) -> None:
        inputs, self.function = LOSSES[name]
        self.backend, self.device, self.dtype = backend, device, DTYPES[dtype]
        draw = torch.Generator().manual_seed(0)
        rows = [torch.randn(n, d, generator=draw).to(self.dtype).to(device) for _ in range(inputs)]
        self.features = [each.requires_grad_() for each in rows]

    def step(self) -> list[Tensor]:
        """Loss and gradients."""
        value = self.function(*self.features, backend=self.backend)
        return [value.detach(), *torch.autograd.grad(value, self.features)]

    def differs(self, results: list[Tensor], first: list[Tensor]) -> str | None:
        """Which bits differ, or ``None``."""
        for name, a, b in zip(("value", "gradient", "other gradient"), results, first, strict=False):
            if not torch.equal(a, b):
                return f"{int((a != b).sum())} of {a.numel()} elements of the {name} differ from those of the first run"
        return None

    def repeated(self, times: int) -> str | None:
        """Again and again."""
        first = self.step()
        differences = (self.differs(self.step(), first) for _ in range(times - 1))
        return next((f"repeat {i}: {found}" for i, found in enumerate(differences, 2) if found), None)

    def on_a_side_stream(self) -> str | None:
        """Beside the stream that made the features."""
        first, stream = self.step(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self.step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        return self.differs(results, first)

    def in_a_graph(self) -> str | None:
        """Captured and replayed, over what was there."""
        first, stream = self.step(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.step()
        for result in results:
            result.fill_(torch.nan)
        graph.replay()
        return self.differs(results, first)

    def against_float64(self) -> str | None:
        """Against the reference backend, which computes by blocks of rows."""
        exact = [each.detach().double().requires_grad_() for each in self.features]
        value = self.function(*exact, backend="reference")
        truth = [value.detach(), *torch.autograd.grad(value, exact)]
        allowed = max(8 * torch.finfo(self.dtype).eps, 2e-5)
        for name, got, want in zip(("value", "gradient", "other gradient"), self.step(), truth, strict=False):
            error = ((got.double() - want).abs().max() / want.abs().max()).item()
            if not error <= allowed:
                return f"relative error {error:.3g} of the {name}, {allowed:.3g} is allowed"
        return None


def loss_runs(backend: str, device: str, dtype: str, d: int, sizes: Sizes) -> dict[str, Callable[[], str | None]]:
    """What is asked of the losses: so many rows that the rings of a kernel wrap, and repeats of fewer."""
    found: dict[str, Callable[[], str | None]] = {}
    for name in LOSSES:

        def run(n: int, way: Callable[[LossRun], str | None], name: str = name) -> str | None:
            return way(LossRun(name, backend, device, dtype, n, d))

        few, many = f"{name}, N {sizes.rows}", f"{name}, N {sizes.many}"
        found[f"{few}: {sizes.repeats} repeats"] = partial(run, sizes.rows, lambda r: r.repeated(sizes.repeats))
        found[f"{many}: against float64"] = partial(run, sizes.many, LossRun.against_float64)
        found[f"{many}: 3 repeats"] = partial(run, sizes.many, lambda r: r.repeated(3))
        if device != "cpu":
            found[f"{few}: on a side stream"] = partial(run, sizes.rows, LossRun.on_a_side_stream)
            found[f"{few}: in a CUDA graph"] = partial(run, sizes.rows, LossRun.in_a_graph)
    return found


def run_class(backend: str, device: str, dtype: str, d: int, sizes: Sizes, jsonl: Path | None) -> bool:
    """Every kernel of one dtype and dimension, and the repeats; whether all are right."""
    loaded = backends.load(backend)
    tiles = [Tile(loaded, device, dtype, m, n, d) for m, n in sizes.shapes]
    runs: dict[str, Callable[[], Any]] = {kernel: partial(run_kernel, kernel, tiles) for kernel in KERNELS}
    runs |= loss_runs(backend, device, dtype, d, sizes)
    right, lost = True, ""
    for kernel, run in runs.items():
        print(f"{backend} {dtype} D {d}: {kernel}", flush=True)  # before it runs: the last line of one that hangs
        if lost:
            found: dict[str, Any] = {"status": "skipped", "reason": f"the GPU's context was lost in {lost}"}
        else:
            try:
                wrong = run()
                found = {"status": "ok" if wrong is None else "failed", "reason": None}
                found |= {"reason": wrong} if isinstance(wrong, str) else wrong or {}
            except Exception as error:
                message = (str(error).strip().splitlines() or [""])[0]
                found = {"status": "failed", "reason": f"{type(error).__name__}: {message[:300]}"}
                lost = "" if usable(device) else kernel
        right = right and found["status"] == "ok"
        if found["status"] != "ok":
            print(f"{backend} {dtype} D {d}: {kernel}: {found['status'].upper()}: {found['reason']}", flush=True)
        if jsonl is not None:
            head = {"kind": "first tile", "kernel": kernel, "backend": backend, "dtype": dtype, "d": d}
            append(jsonl, [head | found])
    return right


def usable(device: str) -> bool:
    """Whether the device still computes: after an illegal access it does not in this process."""
    try:
        return torch.ones(1, device=device).sum().item() == 1
    except RuntimeError:
        return False


def main() -> int:
    """Returns 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="One tile of every kernel, element by element, and repeats.")
    parser.add_argument("--backend", choices=("cuda", "triton"), required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", choices=SIZES, default="full")
    parser.add_argument("--dtypes", default=",".join(DTYPES), metavar="A,B")
    parser.add_argument("--dims", metavar="D,D")
    parser.add_argument("--jobs", type=int, default=12, help="processes at a time")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as many as there are")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="add a row for each kernel there")
    args = parser.parse_args()
    sizes = SIZES[args.sizes]
    dims = sizes.dims if args.dims is None else tuple(map(int, args.dims.split(",")))
    classes = [(dtype, d) for dtype in args.dtypes.split(",") for d in dims]
    if len(classes) == 1:
        if args.threads:
            torch.set_num_threads(args.threads)
        torch.set_float32_matmul_precision("highest")
        return 0 if run_class(args.backend, args.device, *classes[0], sizes, args.jsonl) else 1
    base = [sys.executable, "-m", "tools.first_tile", "--backend", args.backend, "--device", args.device]
    threads = args.threads or max(1, (os.cpu_count() or 1) // min(args.jobs, len(classes)))
    base += ["--threads", str(threads), "--sizes", args.sizes]
    base += [] if args.jsonl is None else ["--jsonl", str(args.jsonl)]
    statuses = beside([[*base, "--dtypes", dtype, "--dims", str(d)] for dtype, d in classes], args.jobs)
    for (dtype, d), status in zip(classes, statuses, strict=True):
        if status not in (0, 1) and args.jsonl is not None:
            head = {"kind": "first tile", "kernel": "all", "backend": args.backend, "dtype": dtype, "d": d}
            append(args.jsonl, [{**head, "status": "failed", "reason": f"the process ended with status {status}"}])
    failed = sum(status != 0 for status in statuses)
    print(f"{args.backend}: {len(classes) - failed} of {len(classes)} classes of dtype and dimension are right")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
