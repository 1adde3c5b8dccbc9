"""How good `hyperkern.evaluate(method="estimate")` is: repeated draws beside the exact value and plain column sampling.

``python -m benchmarks.estimate [--json FILE]``, two minutes on a CPU core.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperkern as hk

ROWS, DIM, COLUMNS, T = 6000, 64, 128, 2.0


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


def measure(name: str, draws: int) -> dict[str, Any]:
    """A row of the table."""
    torch.manual_seed(0)
    x = F.normalize(FEATURES[name]().double())
    exact, rows = hk.evaluate(x, t=T).uniformity, x.float()
    results = [hk.evaluate(rows, t=T, method="estimate", columns=COLUMNS, seed=seed) for seed in range(draws)]
    errors = torch.tensor([result.uniformity - exact for result in results], dtype=torch.float64)
    claimed = math.sqrt(sum(result.standard_error**2 for result in results) / draws)
    plain = plain_variance(x)
    return {
        "features": name,
        "draws": draws,
        "exact": exact,
        "deviation": errors.std().item(),
        "plain_deviation": math.sqrt(plain),
        "variance_ratio": plain / errors.var().item(),
        "bias_of_deviation": (errors.mean() / errors.std()).item(),
        "claimed_of_deviation": claimed / errors.std().item(),
        "coverage": sum(low <= exact <= high for low, high in (result.interval for result in results)) / draws,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| features | deviation, columns alone | deviation | variance ÷ | coverage of 95 % |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        deviations = f"{row['plain_deviation']:.1e} | {row['deviation']:.1e}"
        lines.append(
            f"| {row['features']} | {deviations} | {row['variance_ratio']:.1f} | {100 * row['coverage']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--draws", type=int, default=400)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [measure(name, args.draws) for name in FEATURES]
    print(table(rows))
    if args.json:
        options = {"n": ROWS, "d": DIM, "columns": COLUMNS, "t": T}
        args.json.write_text(json.dumps(options | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
