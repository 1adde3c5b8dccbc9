"""The options that the recipes share, and the checks before any work."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from examples.digits.config import OptionError
from hyperkern.files import OutputError

from ..objective import Objective
from .checkpoint import can_be_written
from .published import RESULT


def command_line(name: str, description: str, *, out: str) -> argparse.ArgumentParser:
    """A parser with the options of every recipe.

    Args:
        name: of the recipe on the command line.
        description: of it.
        out: its default folder.
    """
    command = argparse.ArgumentParser(
        prog=f"python -m examples.paper {name}",
        usage="%(prog)s --data DIR [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=description + f"\n\nOn several GPUs: torchrun --nproc_per_node=N -m examples.paper {name} ...",
    )
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the data set is")
    command.add_argument(
        "--out", type=Path, default=Path(out), metavar="DIR", help="checkpoints, results (%(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, order and views (%(default)s)")
    command.add_argument(
        "--workers", type=int, default=cores(), metavar="N", help="processes that load data (%(default)s)"
    )
    command.add_argument("--device", help="cpu, cuda or cuda:<index> (a GPU if there is one)")
    command.add_argument(
        "--steps", type=int, metavar="N", help="a trial: at most so many steps an epoch, and one epoch"
    )
    return command


def cores() -> int:
    """This process's share of the machine's cores, at most 16: more loaders than these wait for each other."""
    return max(1, min(16, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def at_least(options: argparse.Namespace, least: float, *names: str) -> None:
    """Refuse smaller numbers; ``None`` is an option that was not given.

    Raises:
        OptionError: naming the option and its value.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise OptionError(name.replace("_", "-"), value, f"must be at least {least}")


def positive(options: argparse.Namespace, *names: str) -> None:
    """Refuse what is not above 0, or infinite; ``None`` is an option that was not given.

    Raises:
        OptionError: naming the option and its value.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise OptionError(name.replace("_", "-"), value, "must be above 0")


def add_loss(command: argparse.ArgumentParser, usual: Objective) -> argparse._ArgumentGroup:
    """Add the options of an objective, see `objective_of`, with these defaults; the group that they are in."""
    loss = command.add_argument_group("loss")
    for name, what in (
        ("align_weight", "weight of the alignment"),
        ("uniform_weight", "weight of the uniformity"),
        ("contrastive_weight", "weight of the contrastive loss"),
        ("alpha", "exponent of the distance in the alignment"),
        ("t", "inverse width of the Gaussian in the uniformity"),
        ("temperature", "of the contrastive loss"),
    ):
        option, default = f"--{name.replace('_', '-')}", getattr(usual, name)
        loss.add_argument(option, type=float, default=default, metavar="X", help=f"{what} (%(default)g)")
    return loss


def objective_of(options: argparse.Namespace) -> Objective:
    """What the options of `add_loss` say.

    Raises:
        OptionError: one of them has a value that cannot work.
    """
    objective = Objective(**{name: getattr(options, name) for name in Objective._fields})
    at_least(options, 0, "align_weight", "uniform_weight", "contrastive_weight")
    positive(options, "alpha", "t", "temperature")
    if not (objective.align_weight or objective.uniform_weight or objective.contrastive_weight):
        raise OptionError("align-weight", objective.align_weight, "of the three weights one must be above 0")
    return objective


def folder_for_results(options: argparse.Namespace) -> Path:
    """The output folder, which is made.

    Raises:
        OptionError: the result cannot be written there.
    """
    out: Path = options.out
    can_be_written(out / RESULT)
    return out


def guarded(command: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None], words: Sequence[str]) -> int:
    """Parse the words and do the work; what cannot work is said as argparse does.

    Returns:
        0; 1 for a loss that became infinite or NaN; 130 if interrupted; argparse ends the process with 2.
    """
    options = command.parse_args(words)
    try:
        at_least(options, 0, "workers", "seed")
        at_least(options, 1, "steps")
        work(options)
    except (OptionError, OutputError) as error:
        command.error(str(error))
    except FloatingPointError as error:
        print(f"{command.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{command.prog}: interrupted; the same command goes on from the last whole epoch", file=sys.stderr)
        return 130
    return 0
