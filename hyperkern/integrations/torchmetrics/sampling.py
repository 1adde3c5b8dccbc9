r"""A uniform sample of a stream of rows that several processes see parts of, and the error of a uniformity taken on it.

Every row draws a random key, and the rows with the k smallest keys are the sample: uniform, without replacement, of
all that was seen. Which rows these are does not depend on who saw them, so samples of several processes are merged by
taking the k smallest keys of all, and each process then counts by as many rows as it has seen.

The uniformity of the sample is the logarithm of a U-statistic of degree two, whose variance is mostly that of the mean
potentials of the rows: with :math:`S_i = \sum_{j \ne i} e^{-t \lVert x_i - x_j \rVert^2}` the jackknife, which leaves
out each row in turn, gives the relative variance

.. math:: \frac{4 (k - 1)}{k (k - 2)^2} \sum_i \Bigl( \frac{S_i}{\bar S} - 1 \Bigr)^2 \Bigl( 1 - \frac kn \Bigr)

where the last factor is that of a sample of k out of n rows. The logarithm of the mean has the relative standard error
of the mean. The jackknife's variance is too large rather than too small: for the uniform distribution, where the mean
potentials of all rows are the same and only the second-order part is left, about twice too large.

Source:
    Cohen & Kaplan, "Summarizing Data Using Bottom-k Sketches", PODC 2007; Hoeffding, "A Class of Statistics with
    Asymptotically Normal Distribution", Ann. Math. Statist. 1948, Section 5; Arvesen, "Jackknifing U-Statistics", Ann.
    Math. Statist. 1969; Efron & Stein, "The Jackknife Estimate of Variance", Ann. Statist. 1981 (not too small).
"""

import random

import torch
from torch import Tensor, distributed

from ... import autograd
from ...evaluation.blocks import Rows, accurate
from ...evaluation.exact import precision
from ...evaluation.sources import as_source
from ...spec import PairSpec, PairTerms


def stream(seed: int, size: int, seen: int) -> torch.Generator:
    """The keys of a process: others than those of any other one, or of one that goes on after ``seen`` rows."""
    several = distributed.is_available() and distributed.is_initialized()
    rank = distributed.get_rank() if several else 0
    # The generator looks at 32 bits of its seed: they are mixed of all four numbers.
    return torch.Generator().manual_seed(random.Random(f"{seed} {size} {rank} {seen}").getrandbits(32))


def draw_keys(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Keys of so many rows, 63 random bits each, the same on every device."""
    return torch.empty(count, dtype=torch.int64).random_(generator=generator).to(device)


def smallest(rows: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The rows with the ``size`` smallest keys, in the order they have, and the keys."""
    if len(keys) <= size:
        return rows, keys
    index = keys.topk(size, largest=False, sorted=False).indices.sort().values
    return rows[index], keys[index]


def sampling_error(x: Tensor, seen: Tensor, *, t: float, normalize: bool) -> Tensor:
    """The standard error of the uniformity of a sample.

    Args:
        x: ``(k, D)`` the sample, float32 or float64, at least 3 rows or all that were seen.
        seen: how many rows it was drawn of, an integer scalar on the device of ``x``.
        t: inverse width of the Gaussian potential.
        normalize: whether rows are scaled to unit length first.

    Returns:
        A float64 scalar (on the CPU where the device has none); 0 where the sample is all that was seen.
    """
    k = len(x)
    if k < 3:
        return accurate(torch.zeros_like(x[0, 0]))
    center = None if normalize else accurate(x).mean(0)
    rows = Rows(as_source("x", x), x.device, k, t, normalize, None, None, center=center, wide=not normalize)
    block = rows.load(0)
    spec = PairSpec(2 * t, False, "self", precision=precision(rows))
    logs, _ = autograd.row_lse(block.x, None, spec=spec, terms=PairTerms(block.u))
    relative = accurate(logs).softmax(0) * k
    variance = 4 * (k - 1) / (k * (k - 2) ** 2) * (relative - 1).square().sum()
    return (variance * (1 - k / accurate(seen)).clamp_min(0)).sqrt()
