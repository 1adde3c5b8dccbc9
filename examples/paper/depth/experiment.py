"""The smoke test: every encoder of a seed, small, on windows of one picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import update_bn

from ..objective import Objective, metrics
from ..recipes.session import Session
from . import motorcycle
from .networks import Encoder
from .training import ENCODER_RATE as RATE
from .training import PREDICTOR_RATE, constant_error, depth_error, encoder_trainee, new_predictor, predictor_trainee
from .views import Loader, Pairs, Samples, Scale, all_of

CHANNELS, HIDDEN, DIM = (8, 16, 32, 32, 16), 128, 32
SIZE = 24
LEAST_AREA = 0.08
VIEW_SEED = 1_000_003  # of the held-out views, the same for every encoder

# The paper's best of either kind, and further ones that spread the metrics; the untrained encoder has none.
UNTRAINED, ALIGN_UNIFORM, CONTRASTIVE = "untrained", "align-uniform", "contrastive"
OBJECTIVES: dict[str, Objective | None] = {
    UNTRAINED: None,
    ALIGN_UNIFORM: Objective(align_weight=0.75, uniform_weight=0.5),
    CONTRASTIVE: Objective(contrastive_weight=0.5, temperature=0.1),
    "align-uniform, t=5": Objective(align_weight=1, uniform_weight=1, t=5),
    "align-uniform, 4:1": Objective(align_weight=2, uniform_weight=0.5),
    "contrastive, τ=0.5": Objective(contrastive_weight=1, temperature=0.5),
    "uniform": Objective(uniform_weight=1),
}
LAYERS = (5, 4)
SEEDS = 4


class Budget(NamedTuple):
    """How much is computed.

    Attributes:
        epochs: of an encoder.
        drawn: epochs of which the views are drawn; they come again after these, the same for all encoders of a seed.
        predictor_epochs: of a depth predictor.
        batch: pairs of a step.
        steps: at most so many an epoch.
    """

    epochs: int = 10
    drawn: int = 2
    predictor_epochs: int = 8
    batch: int = 64
    steps: int | None = None


QUICK = Budget(epochs=1, drawn=1, predictor_epochs=1, batch=16, steps=2)


def encoders(seed: int, names: list[str], budget: list[int | None]) -> dict[str, Any]:
    """Train and evaluate the encoders of a seed.

    Args:
        seed: of weights, order and views.
        names: of `OBJECTIVES`.
        budget: see `Budget`.

    Returns:
        The error of the mean depth, and of each encoder its metrics on held-out views and its errors by layer.
    """
    amount = Budget(*budget)
    session = Session(torch.device("cpu"), 0, 1, None)
    loader = Loader(session, amount.batch, seed, steps=amount.steps)
    train, held_out = motorcycle.load()
    scale = Scale.of(train.images)
    pairs = Pairs(train.images, SIZE, scale, LEAST_AREA)
    views = [list(loader(pairs, epoch)) for epoch in range(amount.drawn)]
    held_out_views = all_of(Pairs(held_out.images, SIZE, scale, LEAST_AREA), VIEW_SEED)
    samples = Samples(train.resized(SIZE), SIZE, scale, random=True)
    crops = [list(loader(samples, epoch)) for epoch in range(amount.drawn)]
    held_out_crops = all_of(Samples(held_out.resized(SIZE), SIZE, scale, random=False), VIEW_SEED)

    found = {}
    for name in names:
        encoder = new_encoder(seed)
        objective = OBJECTIVES[name]
        if objective is not None:
            rate = RATE * amount.batch
            trainee = encoder_trainee(encoder, objective, session, rate=rate, epochs=amount.epochs)
            trainee.fit(lambda epoch: views[epoch % amount.drawn], amount.epochs)
        else:
            # Without statistics of images batch norm leaves next to nothing of them.
            update_bn((torch.cat(pair) for pair in views[0]), encoder)
        encoder.eval()
        with torch.no_grad():
            found[name] = metrics(*map(encoder, held_out_views))
        for layer in LAYERS:
            predictor = new_predictor(encoder, layer, train.depths, seed).to(memory_format=torch.channels_last)
            epochs = amount.predictor_epochs
            trainee = predictor_trainee(predictor, encoder, layer, session, rate=PREDICTOR_RATE, epochs=epochs)
            trainee.fit(lambda epoch: crops[epoch % amount.drawn], epochs)
            found[name][f"conv{layer}"] = depth_error(predictor, encoder, layer, [held_out_crops])
    return {"mean depth": constant_error(train, held_out_crops[1]), "encoders": found}


def new_encoder(seed: int) -> Encoder:
    """A small encoder whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(SIZE, DIM, CHANNELS, HIDDEN).to(memory_format=torch.channels_last)
