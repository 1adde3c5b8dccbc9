"""How often `hyperkern bench --fail-over` calls a regression where nothing has changed.

``python -m benchmarks.repeats --json FILE`` measures the same matrix again and again, each time in a process of its
own, and sets every run beside the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from hyperkern.bench.compare import compare
from hyperkern.bench.result import read
from hyperkern.cli.progress import progress_bar

OPTIONS = ["--device", "cpu", "--cases", "uniformity,clip", "--implementations", "dense,hyperkern", "--no-memory"]
OPTIONS += ["--sizes", "512,2048", "--dims", "128"]
THRESHOLD = 0.05


def main() -> None:
    """Measures, and writes what the comparisons said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="for the results")
    parser.add_argument("--runs", type=int, default=20, help="beside the first (default 20)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress_bar("repeats") as progress:
        files = [Path(folder) / f"{i}.json" for i in range(args.runs + 1)]
        for i, file in enumerate(files):
            command = [sys.executable, "-m", "benchmarks", *OPTIONS, "--json", str(file)]
            subprocess.run(command, check=True, capture_output=True)
            progress(i + 1, len(files))
        first, *others = map(read, files)
    rows = []
    for other in others:
        changes = compare(first, other, THRESHOLD)
        ratios = [change.ratio for change in changes if change.ratio is not None]
        verdicts = [change.verdict for change in changes]
        rows.append(
            {
                "rows": len(changes),
                "slower": sum(change.regression for change in changes),
                "faster": verdicts.count("faster"),
                "smallest_ratio": min(ratios),
                "largest_ratio": max(ratios),
            }
        )
        print(rows[-1])
    content = {"machine": first["machine"], "options": OPTIONS, "threshold": THRESHOLD, "runs": rows}
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
