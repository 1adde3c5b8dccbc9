"""The functions that run in processes of their own. Arguments and results can be written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .configuration import Configuration
from .data import load
from .evaluation import measure
from .training import new_encoder, train

Recipe = Mapping[str, Any]  # options of a `Configuration`

# Fine-tuning: the start that the paper takes, an encoder of a temperature that is too high; then one objective each.
START: Recipe = {"contrastive": 1.0, "tau": 2.5}
OBJECTIVES: dict[str, Recipe] = {
    "align": {"align": 1.0, "alpha": 2.0},
    "uniform": {"uniform": 1.0, "t": 2.0},
    "both": {"align": 1.0, "alpha": 2.0, "uniform": 1.0, "t": 2.0},
    "contrastive": {"contrastive": 1.0, "tau": 0.25},
}
FINE_TUNING_SEED = 1_000


def train_encoders(data: str, rows: int | None, encoders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Train and measure encoders.

    Args:
        data: name of the data set.
        rows: of it at most, ``None`` for all.
        encoders: each with its ``configuration`` and its ``seed``.

    Returns:
        Under ``measures``, for each encoder its `Measures` as a mapping, or ``None`` for one that diverged.
    """
    loaded = load(data, rows)
    found: list[dict[str, float] | None] = []
    for one in encoders:
        configuration, seed = Configuration(**one["configuration"]), one["seed"]
        encoder = new_encoder(loaded, configuration, seed)
        try:
            for _ in train(encoder, loaded, configuration, seed):
                pass
            found.append(measure(encoder, loaded)._asdict())
        except FloatingPointError:
            found.append(None)
    return {"measures": found}


def fine_tune(
    data: str, rows: int | None, seed: int, start: Recipe, tuned: Recipe, at: Sequence[int]
) -> dict[str, Any]:
    """Train an encoder at a temperature that is too high, then fine-tune it with one objective after the other.

    Args:
        data: name of the data set.
        rows: of it at most, ``None`` for all.
        seed: of the training; the fine-tunings share one of their own.
        start: recipe of the training, options of a `Configuration`.
        tuned: recipe of the fine-tuning, whose learning rate is constant.
        at: the epochs of the fine-tuning after which encoders are measured.

    Returns:
        ``start``: the `Measures` of the start as a mapping; ``tracks``: by objective, those after each epoch of ``at``.

    Raises:
        FloatingPointError: an encoder diverged.
    """
    loaded = load(data, rows)
    first = Configuration(**START, **start)
    encoder = new_encoder(loaded, first, seed)
    for _ in train(encoder, loaded, first, seed):
        pass
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    found: dict[str, Any] = {"start": measure(encoder, loaded)._asdict(), "tracks": {}}
    for name, options in OBJECTIVES.items():
        encoder.load_state_dict(weights)
        second = Configuration(**options, **tuned)
        found["tracks"][name] = [
            measure(encoder, loaded)._asdict()
            for epoch in train(encoder, loaded, second, seed + FINE_TUNING_SEED, decay=False)
            if epoch in at
        ]
    return found
