"""`evaluate`: checks, the passes over the data, the result."""

from __future__ import annotations

import math
import time
import warnings as python_warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import check_choice, check_integer, check_positive
from ..losses.uniformity import MAX_SQUARED_LENGTH
from ..metrics import uniformity_limit
from .blocks import Rows, Scan, Tick, default_block_rows, scan
from .estimate import Mean, estimate, student_quantile
from .exact import exact, exact_visits
from .result import Evaluation, Side
from .sources import Source, as_source, check_dense, check_unmasked

if TYPE_CHECKING:
    import numpy as np

METHODS = ("exact", "estimate")
DEFAULT_COLUMNS = 1024
_FEWEST_COLUMNS = 16
_SEEDS = -(2**63), 2**64 - 1  # that PyTorch takes
_LARGEST_T = 100.0  # of the estimate; far beyond where a sample still sees what makes up the mean
_DOUBTFUL = 0.1  # a relative standard error from which on the interval is too narrow, seen at t = 20


def evaluate(
    features: Tensor | np.ndarray | Source,
    positives: Tensor | np.ndarray | Source | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    t: float = 2.0,
    alpha: float = 2.0,
    normalize: bool = True,
    method: str = "exact",
    columns: int = DEFAULT_COLUMNS,
    confidence: float = 0.95,
    seed: int = 0,
    device: torch.device | str | None = None,
    block_rows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    backend: str | None = None,
) -> Evaluation:
    r"""Alignment and uniformity of a whole data set, streamed in blocks.

    .. math::
        A &= \tfrac1N \sum_i \lVert \hat x_i - \hat y_i \rVert^\alpha \\
        U &= \log \tfrac{2}{N(N-1)} \sum_{i<j} e^{-t \lVert \hat x_i - \hat x_j \rVert^2}

    The same values as `hyperkern.alignment` and `hyperkern.uniformity`, without derivatives, of features that need not
    fit on the device. With positives, as in `hyperkern.align_uniform`, U is the mean of both sides.

    Args:
        features: ``(N, D)``, N >= 2: a tensor on any device, a NumPy array, in memory or mapped, or what
            `hyperkern.evaluation.open_features` returns; float64, float32, bfloat16 or float16.
        positives: the partner of each row, likewise.
        weights: ``(N,)`` weights >= 0: a pair of rows counts ``w_i w_j`` times in U, a positive pair ``w_i`` times
            in A.
        t: inverse width of the Gaussian potential, > 0; at most 100 for an estimate.
        alpha: exponent of the alignment distance, > 0.
        normalize: whether rows are scaled to unit length first.
        method: ``"exact"``: every pair, O(N^2 D). ``"estimate"``: U from a sample of columns, O(N D (D + columns)),
            with a standard error and an interval; A is exact all the same. It needs ``normalize``.
        columns: how many columns an estimate draws, >= 16. With as many as there are rows the result is exact.
        confidence: probability that the interval covers the exact value, in (0.5, 1).
        seed: of the draws, from -2^63 to 2^64 - 1.
        device: where to compute; by default where the features are if that is not the CPU, else a GPU if there is one.
        block_rows: rows of a block; by default as many as the device works well with.
        progress: called with the number of blocks done and of all, in the end with two equal numbers.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        `Evaluation`. A row with nan or inf makes the values of its side nan; it is counted in ``bad_rows``. Memory is
        that of a few blocks, ``block_rows * D``, and for an estimate some 200 bytes for each row.

    Raises:
        TypeError: an input is neither tensor nor array nor source, a masked array, or of a dtype that is not
            supported; a number that is none.
        ValueError: a wrong or empty shape, a sparse, nested or meta tensor, fewer than two rows, positives of another
            shape, weights that are negative, not finite or leave no pair, an option out of its range, an unknown or
            unusable backend, or a device that is unknown or not here.

    Warns:
        UserWarning: for rows that are not of unit length, zero or not finite, and for an estimate that is too noisy.

    Source:
        Wang & Isola, ICML 2020, Section 4.1; the estimate is explained in docs/scaling.md.
    """
    started = time.perf_counter()
    t = check_positive("t", t)
    alpha = check_positive("alpha", alpha)
    check_choice("method", method, METHODS)
    check_integer("columns", columns, _FEWEST_COLUMNS)
    if block_rows is not None:
        check_integer("block_rows", block_rows, 1)
    check_integer("seed", seed, *_SEEDS)
    confidence = check_positive("confidence", confidence)
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 0.5 and 1, got {confidence}")
    sources = _checked_sources(features, positives)
    count, dim = sources[0].rows, sources[0].dim
    if columns >= count:
        method = "exact"
    if method == "estimate":
        _check_estimate(t, normalize)
    relative, pair_weight = _checked_weights(weights, count)
    device = _resolved_device(device, sources[0])
    block_rows = block_rows or default_block_rows(device, dim)
    sides = [Rows(source, device, block_rows, t, normalize, backend, relative) for source in sources]

    blocks = len(sides[0].starts)
    after_scan = exact_visits(blocks) if method == "exact" else 2 * blocks
    done, total = 0, len(sides) * (blocks + after_scan)

    def tick(count: int = 1) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with torch.no_grad():
        scans, alignment = scan(sides, alpha=alpha, with_moments=method == "estimate", tick=tick)
        notes = [note for side, found in zip(sides, scans, strict=True) for note in _notes(side, found)]
        generator = torch.Generator().manual_seed(seed)
        means = []
        for side, found in zip(sides, scans, strict=True):
            if found.bad_rows:
                means.append(Mean(math.nan, math.nan, math.nan))
                tick(after_scan)
            else:
                means.append(_uniformity(side, found, method, columns, pair_weight, generator, tick))
    uniformity, error, interval = _figures(_of_both(means), method, confidence)
    if error is not None and error > _DOUBTFUL:
        notes.append(
            f"the standard error {error:.2g} of the estimate is too large for its interval to be trusted: draw more "
            "columns, or take method='exact'"
        )
    for note in notes:
        python_warnings.warn(note, UserWarning, stacklevel=2)
    on_sphere = normalize or all(_are_unit(side, found) for side, found in zip(sides, scans, strict=True))
    floor = uniformity_limit(dim, t) if on_sphere else None
    return Evaluation(
        uniformity=uniformity,
        standard_error=error,
        interval=interval,
        confidence=confidence,
        floor=floor,
        gap=None if floor is None else uniformity - floor,
        alignment=alignment,
        sides=tuple(
            Side(side.source.name, *_figures(mean, method, confidence), found.norms, found.zero_rows, found.bad_rows)
            for side, found, mean in zip(sides, scans, means, strict=True)
        ),
        rows=count,
        dim=dim,
        dtype=str(sources[0].dtype).removeprefix("torch."),
        t=t,
        alpha=alpha,
        normalize=normalize,
        weighted=relative is not None,
        method=method,
        columns=columns if method == "estimate" else None,
        seed=seed,
        device=str(device),
        seconds=time.perf_counter() - started,
        warnings=tuple(notes),
    )


def _uniformity(
    rows: Rows, found: Scan, method: str, columns: int, pair_weight: float, generator: torch.Generator, tick: Tick
) -> Mean:
    rows = replace(rows, has_zero_rows=found.zero_rows > 0)
    if method == "estimate":
        assert found.moments is not None
        return estimate(rows, found.moments, columns=columns, pair_weight=pair_weight, generator=generator, tick=tick)
    bound: float | None = 2 * rows.t
    if not rows.normalize:
        longest = (found.norms[2] + torch.linalg.vector_norm(found.center).item()) ** 2
        short = longest <= MAX_SQUARED_LENGTH
        rows = replace(rows, center=found.center, wide=not short)
        bound = 4 * rows.t * longest if short else None  # |x - y|^2 <= (2 max |x|)^2
    return Mean(exact(rows, bound=bound, pair_weight=pair_weight, tick=tick), 0.0, math.inf)


def _of_both(means: list[Mean]) -> Mean:
    """The mean of the sides, whose draws are independent."""
    variances = [(mean.standard_error / len(means)) ** 2 for mean in means]
    # Welch and Satterthwaite's degrees of freedom of a sum.
    squares = sum(v * v / mean.degrees for v, mean in zip(variances, means, strict=True))
    degrees = sum(variances) ** 2 / squares if squares > 0 else math.inf
    return Mean(sum(mean.value for mean in means) / len(means), math.sqrt(sum(variances)), degrees)


def _figures(mean: Mean, method: str, confidence: float) -> tuple[float, float | None, tuple[float, float] | None]:
    """The value, and of an estimate its standard error and interval."""
    value, error, degrees = mean
    if method == "exact":
        return value, None, None
    half = student_quantile(0.5 + confidence / 2, degrees) * error if error > 0 else 0.0
    return value, error, (value - half, value + half)


def _are_unit(side: Rows, found: Scan) -> bool:
    # A row normalised in half precision is off by half a unit in its last place.
    tolerance = max(1e-4, 2 * torch.finfo(side.source.dtype).eps)
    return found.norms[0] >= 1 - tolerance and found.norms[2] <= 1 + tolerance


def _notes(side: Rows, found: Scan) -> list[str]:
    """What should be known of the rows of a side."""
    name, notes = side.source.name, []
    smallest, mean, largest = found.norms
    if found.bad_rows:
        notes.append(f"{name}: {found.bad_rows} of {side.source.rows} rows hold nan or inf, so the result is nan")
    if found.zero_rows:
        notes.append(f"{name}: {found.zero_rows} of {side.source.rows} rows are zero and stay at the origin")
    if found.bad_rows < side.source.rows and not _are_unit(side, found):
        done = "they were normalised" if side.normalize else "distances are Euclidean, and the floor does not apply"
        norms = f"{smallest:.4g} to {largest:.4g}, mean {mean:.4g}"
        notes.append(f"{name}: rows are not of unit length (norms {norms}): {done}")
    return notes


def _checked_sources(features: object, positives: object) -> list[Source]:
    sources = [as_source("features", features)]
    if positives is not None:
        sources.append(as_source("positives", positives))
    for source in sources:
        if source.rows < 2:
            raise ValueError(f"{source.name} must have at least 2 rows to form a pair, got shape ({source.rows}, ...)")
    if positives is not None:
        x, y = sources
        if (y.rows, y.dim) != (x.rows, x.dim):
            shapes = f"{(x.rows, x.dim)}, got {(y.rows, y.dim)}"
            raise ValueError(f"positives {y.name} must have the shape of {x.name}, {shapes}")
        if y.dtype != x.dtype:
            raise TypeError(f"positives {y.name} must have the dtype of {x.name}, {x.dtype}, got {y.dtype}")
    return sources


def _checked_weights(weights: Tensor | np.ndarray | None, count: int) -> tuple[Tensor | None, float]:
    """The weights over the largest of them, and the sum of ``w_i w_j`` over the distinct pairs."""
    if weights is None:
        return None, count * (count - 1) / 2
    check_unmasked("weights", weights)
    try:
        given = torch.as_tensor(weights).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"weights must be a tensor or an array, got {type(weights).__name__} ({error})") from error
    check_dense("weights", given)
    if not given.is_floating_point():
        raise TypeError(f"weights must have a floating dtype, got {given.dtype}")
    if given.shape != (count,):
        raise ValueError(f"weights must have shape ({count},), one for each row, got {tuple(given.shape)}")
    wide = given.cpu().double()
    wrong = int((~(wide.isfinite() & (wide >= 0))).sum())
    if wrong:
        raise ValueError(f"weights must be finite and >= 0, {wrong} of {count} are not")
    if int((wide > 0).sum()) < 2:
        raise ValueError(f"weights must be > 0 for at least 2 rows to form a pair, got {int((wide > 0).sum())}")
    relative = wide / wide.max()
    # All terms are positive; (sum w)^2 - sum w^2 would cancel when one weight dominates.
    return relative, (relative[1:] * relative.cumsum(0)[:-1]).sum().item()


def _check_estimate(t: float, normalize: bool) -> None:
    if not normalize:
        raise ValueError(
            "method='estimate' needs normalize=True: it corrects by moments of the similarities of unit rows; "
            "method='exact' takes rows of any length"
        )
    if t > _LARGEST_T:
        raise ValueError(
            f"t must be at most {_LARGEST_T:g} with method='estimate', got {t}: the mean is then made by a few close "
            "pairs that a sample misses; method='exact' takes any t"
        )


def _resolved_device(device: torch.device | str | None, source: Source) -> torch.device:
    if device is None:
        on_cpu = source.device.type == "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else "cpu") if on_cpu else source.device
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be the name of a device such as cpu or cuda, got {device!r}") from None
    if resolved.type == "meta":
        raise ValueError("device must hold values, got meta")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    try:
        torch.zeros(1, device=resolved).cpu()
    except Exception as error:  # a device that is not here raises half a dozen kinds of errors
        reason = str(error).split(". ")[0].split("\n")[0]
        raise ValueError(f"device {device} is not here: {reason}") from error
    return resolved
