"""The recipes that figures were published of: what differs between them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

# By the names of the options, but for the loss. "paper": its appendix B.2.1, made with CMC's code, whose queue is taken
# since the paper does not give one. "plain" and "strong": of the repository that goes with the paper.
_PLAIN = {"epochs": 200, "schedule": [120, 160], "queue": 65536}
_LINEAR = {"linear_epochs": 100, "linear_lr": 30.0, "linear_schedule": [60, 80], "linear_decay": 0.1}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        **{"epochs": 240, "schedule": [120, 160, 200], "queue": 16384},
        **{"linear_epochs": 60, "linear_lr": 10.0, "linear_schedule": [30, 40, 50], "linear_decay": 0.2},
    },
    "plain": {**_PLAIN, **_LINEAR},
    "strong": {**_PLAIN, **_LINEAR},  # other views, head, and a cosine instead of the schedule
}
# Of each of them.
SHARED = {"lr": 0.03, "arch": "resnet50", "crop": 224, "dim": 128, "momentum": 0.999, "linear_batch": 256}


def complete(options: argparse.Namespace) -> None:
    """Give the options that were not given the values of the recipe, and this one if it was not either."""
    if options.recipe is None:
        options.recipe = "strong" if options.all_classes else "paper"
    if options.batch is None:
        options.batch = batch_of(options)
    for name, value in RECIPES[options.recipe].items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def batch_of(options: argparse.Namespace) -> int:
    """Images of a step of the published encoders."""
    return 256 if options.all_classes else 128


def published_with(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the published figures, by their names on the command line."""
    whole = {**SHARED, **RECIPES[options.recipe], "batch": batch_of(options)}
    if options.pretrained is not None:  # what is evaluated was made elsewhere
        whole = {name: value for name, value in whole.items() if name.startswith("linear") or name in ("arch", "crop")}
    return {name.replace("_", "-"): value for name, value in whole.items()}


def published_as(options: argparse.Namespace) -> str:
    """The name in `published.PUBLISHED` of what the options are, or one of which nothing was published."""
    if options.arch != "resnet50":
        return f"imagenet100 --arch {options.arch}"
    if options.pretrained is not None and not options.all_classes:
        return "imagenet100 --pretrained"
    if options.all_classes:
        return "imagenet" if options.recipe == "strong" else f"imagenet100 --all-classes --recipe {options.recipe}"
    return f"imagenet100 --recipe {options.recipe}"
