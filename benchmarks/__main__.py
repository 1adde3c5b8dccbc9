"""``python -m benchmarks [STUDY] …``: ``hyperkern bench`` with the peers, or of a study, from a source tree."""

import sys
from collections.abc import Sequence

import torch

from hyperkern.cli import main as hyperkern

from .studies import PEERS, STUDIES


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its status."""
    if words and words[0] == "trainers":
        from .trainers import main as trainers

        return trainers(words[1:])
    study = STUDIES.get(words[0]) if words else None
    if study is None and words and not words[0].startswith("-") and words[0] != "compare":
        lines = [f"  {name}: {study.asks}" for name, study in STUDIES.items()]
        print(f"there is no study {words[0]!r}; there are", *lines, sep="\n", file=sys.stderr)
        return 2
    if study is None:
        return hyperkern(["bench", "--load", str(PEERS), *words])
    if study.threads is not None:
        torch.set_num_threads(study.threads)
    return hyperkern(["bench", *study.arguments(), *words[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
