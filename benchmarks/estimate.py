"""How good `hyperkern.evaluate(method="estimate")` is: repeated draws beside the exact value and plain column sampling.

``python -m benchmarks.estimate [--json FILE]``, two minutes on a CPU core.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperkern as hk
from hyperkern.bench.machine import describe
from hyperkern.bench.result import Provenance
from hyperkern.terminal import print_table

from .measured import write

ROWS, DIM, COLUMNS, T = 6000, 64, 128, 2.0
HEADS = ("features", "deviation of columns alone", "deviation", "variance ÷", "the interval covers")


def uniform() -> Tensor:
    return torch.randn(ROWS, DIM)


def clusters(count: int, spread: float, power: float) -> Tensor:
    """Clusters whose sizes fall with a power of their rank."""
    which = torch.multinomial(torch.arange(1.0, count + 1) ** -power, ROWS, replacement=True)
    centers = F.normalize(torch.randn(count, DIM))
    return centers[which] + spread * F.normalize(torch.randn(ROWS, DIM))


def rare_cluster() -> Tensor:
    x = uniform()
    x[: ROWS // 100] = F.normalize(torch.randn(1, DIM)) + 0.3 * F.normalize(x[: ROWS // 100])
    return x


def duplicates() -> Tensor:
    x = uniform()
    x[:20] = x[0]
    return x


FEATURES: dict[str, Callable[[], Tensor]] = {
    "uniform": uniform,
    "10 equal clusters": lambda: clusters(10, 0.5, 0.0),
    "20 clusters, sizes 1/rank": lambda: clusters(20, 0.5, 1.0),
    "100 tight clusters, sizes 1/rank": lambda: clusters(100, 0.2, 1.0),
    "1000 clusters of about 6 rows": lambda: clusters(1000, 0.3, 0.0),
    "1 % in one cluster": rare_cluster,
    "20 equal rows": duplicates,
    "narrow cone": lambda: uniform() * torch.arange(1, DIM + 1) ** -0.5 + 0.3,
}


def plain_variance(x: Tensor) -> float:
    """Relative variance of the mean of so many columns, drawn uniformly without replacement."""
    means = (torch.exp(2 * T * (x @ x.mT - 1)).sum(1) - 1) / (len(x) - 1)
    return (means.var() / means.mean() ** 2 * (1 - COLUMNS / len(x)) / COLUMNS).item()


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """Errors of repeated estimates of the uniformity of some features, beside those of plain column sampling."""

    features: str
    draws: int
    exact: float
    deviation: float
    plain_deviation: float
    variance_ratio: float
    bias_of_deviation: float
    claimed_of_deviation: float
    coverage: float


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """A result file."""

    machine: Provenance
    n: int
    d: int
    columns: int
    t: float
    rows: Sequence[Estimated]


def measure(name: str, draws: int) -> Estimated:
    """A row of the table."""
    torch.manual_seed(0)
    x = F.normalize(FEATURES[name]().double())
    exact, rows = hk.evaluate(x, t=T).uniformity, x.float()
    results = [hk.evaluate(rows, t=T, method="estimate", columns=COLUMNS, seed=seed) for seed in range(draws)]
    errors = torch.tensor([result.uniformity - exact for result in results], dtype=torch.float64)
    claimed = math.sqrt(sum(result.standard_error**2 for result in results) / draws)
    plain = plain_variance(x)
    return Estimated(
        features=name,
        draws=draws,
        exact=exact,
        deviation=errors.std().item(),
        plain_deviation=math.sqrt(plain),
        variance_ratio=plain / errors.var().item(),
        bias_of_deviation=(errors.mean() / errors.std()).item(),
        claimed_of_deviation=claimed / errors.std().item(),
        coverage=sum(low <= exact <= high for low, high in (result.interval for result in results)) / draws,
    )


def lines(rows: Sequence[Estimated]) -> list[list[str]]:
    """The table."""
    return [
        [
            *(row.features, f"{row.plain_deviation:.1e}", f"{row.deviation:.1e}"),
            *(f"{row.variance_ratio:.1f}", f"{100 * row.coverage:.1f} %"),
        ]
        for row in rows
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--draws", type=int, default=400)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [measure(name, args.draws) for name in FEATURES]
    print_table(HEADS, lines(rows), 1)
    if args.json:
        write(args.json, Estimates(machine=describe("cpu"), n=ROWS, d=DIM, columns=COLUMNS, t=T, rows=rows))


if __name__ == "__main__":
    main()
