"""Which of several runs is best, by cross-validation on the training images alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from examples.digits.config import OptionError

from ..checkpoint import UNREADABLE
from .data import Data
from .encoder import Encoder, new_encoder
from .evaluate import MEASURES, Frozen, accuracies, accuracies_of_folds
from .linear import Settings
from .train import FILE

# What decides, as for the paper's Table 1.
DECISIVE = MEASURES[0]


class Choice(NamedTuple):
    """The best run.

    Attributes:
        run: its folder.
        recipe: the options that it was trained with.
        folds: mean accuracies over the folds of each run by its folder, in percent by `MEASURES`.
        test: accuracies of the best on the test images, likewise.
    """

    run: str
    recipe: dict[str, Any]
    folds: dict[str, dict[str, float]]
    test: dict[str, float]


def finished(run: Path, *, tried: bool) -> dict[str, Any]:
    """The checkpoint of a run; its tensors stay in the file until they are used.

    Args:
        run: its folder.
        tried: whether it may be a trial (``--steps``).

    Raises:
        OptionError: there is none, it is not of this recipe, or not at its end.
    """
    path = run / FILE
    if not path.is_file():
        raise OptionError("choose", run, f"must be folders of runs; there is no {FILE}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        done, recipe, _ = state["epochs"], state["recipe"], state["recipe"]["align-weight"]
        epochs, steps = recipe["epochs"], recipe["steps"]
    except UNREADABLE as error:
        raise OptionError("choose", run, f"{FILE} there is no checkpoint of this recipe") from error
    if done != epochs:
        raise OptionError("choose", run, f"has done {done} of its {epochs} epochs")
    if steps and not tried:
        raise OptionError("choose", run, f"is a trial (--steps {steps})")
    return state


def trained(run: Path) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of a run, on the CPU, and the options that it was trained with."""
    state = finished(run, tried=True)
    recipe: dict[str, Any] = state["recipe"]
    encoder = new_encoder(recipe["dim"], recipe["seed"])
    encoder.load_state_dict(state["parts"]["encoder"])
    return encoder.eval(), recipe


def choose(runs: Sequence[Path], data: Data, settings: Settings) -> Choice:
    """Compare the runs by five folds of the training images, and look at the test images with the best alone.

    Args:
        runs: folders, in which checkpoints of the evaluations are kept.
        data: the images.
        settings: how classifiers are trained; its recipe is added to that of each run.

    Returns:
        The best run by `DECISIVE`; of equals the first.

    Raises:
        OptionError: a run is none, a trial where this is none, or not at its end; before any work.
    """
    for run in runs:
        finished(run, tried=bool(settings.recipe.get("steps")))

    def frozen(run: Path) -> tuple[Frozen, Settings]:
        encoder, recipe = trained(run)
        return Frozen(encoder.to(settings.here.device)), settings._replace(recipe={**recipe, **settings.recipe})

    folds: dict[Path, dict[str, float]] = {}
    for run in runs:
        encoder, how = frozen(run)
        folds[run] = accuracies_of_folds(encoder, data.train, run, how)
        settings.here.say(f"{run}, by folds: " + ", ".join(f"{name} {value:.2f}" for name, value in folds[run].items()))
    best = max(runs, key=lambda run: folds[run][DECISIVE])
    encoder, how = frozen(best)
    found = accuracies(encoder, data, best, how)
    return Choice(str(best), dict(how.recipe), {str(run): of for run, of in folds.items()}, found)
