"""Which of several runs is best, by cross-validation on the training images alone."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from examples.digits.config import OptionError

from .data import Data
from .encoder import Encoder, new_encoder
from .evaluate import MEASURES, Frozen, accuracies, accuracies_of_folds
from .linear import Settings
from .train import FILE


class Choice(NamedTuple):
    """The best run for a measure.

    Attributes:
        run: its folder.
        folds: mean accuracy over the folds of each run by its folder, in percent.
        test: accuracy of the best on the test images, in percent.
    """

    run: str
    folds: dict[str, float]
    test: float


def finished(run: Path) -> dict[str, Any]:
    """The checkpoint of a run; its tensors stay in the file until they are used.

    Raises:
        OptionError: there is none, it is not of this recipe, or not at its end.
    """
    path = run / FILE
    if not path.is_file():
        raise OptionError("choose", run, f"must be folders of runs; there is no {FILE}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        done, epochs, _ = state["epochs"], state["recipe"]["epochs"], state["recipe"]["align-weight"]
    except (EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise OptionError("choose", run, f"{FILE} there is no checkpoint of this recipe") from error
    if done != epochs:
        raise OptionError("choose", run, f"has done {done} of its {epochs} epochs")
    return state


def trained(run: Path) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of a run, on the CPU, and the options that it was trained with."""
    state = finished(run)
    recipe: dict[str, Any] = state["recipe"]
    encoder = new_encoder(recipe["dim"], recipe["seed"])
    encoder.load_state_dict(state["parts"]["encoder"])
    return encoder.eval(), recipe


def choose(runs: Sequence[Path], data: Data, settings: Settings) -> dict[str, Choice]:
    """Compare the runs by five folds of the training images, for each measure, and look at the test images of the best.

    Args:
        runs: folders, in which checkpoints of the evaluations are kept.
        data: the images.
        settings: how classifiers are trained; its recipe is added to that of each run.

    Returns:
        The best run by measure; of equals the first.

    Raises:
        OptionError: a run is none, or not at its end; before any work.
    """
    for run in runs:
        finished(run)

    def frozen(run: Path) -> tuple[Frozen, Path, Settings]:
        encoder, recipe = trained(run)
        return Frozen(encoder.to(settings.here.device)), run, settings._replace(recipe={**recipe, **settings.recipe})

    folds: dict[Path, dict[str, float]] = {}
    for run in runs:
        encoder, folder, how = frozen(run)
        folds[run] = accuracies_of_folds(encoder, data.train, folder, how)
        settings.here.say(f"{run}, by folds: " + ", ".join(f"{name} {value:.2f}" for name, value in folds[run].items()))
    best = {measure: max(runs, key=lambda run: folds[run][measure]) for measure in MEASURES}
    tests = {}
    for run in dict.fromkeys(best.values()):
        encoder, folder, how = frozen(run)
        tests[run] = accuracies(encoder, data, folder, how)
    return {
        measure: Choice(str(run), {str(one): found[measure] for one, found in folds.items()}, tests[run][measure])
        for measure, run in best.items()
    }
