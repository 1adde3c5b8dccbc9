"""Jobs: the contrastive loss against its number of negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from examples.digits.data import augment, load
from examples.digits.encoder import new_encoder
from examples.digits.objectives import CONTRASTIVE
from examples.digits.train import train_encoder
from hyperkern import alignment, info_nce, uniformity

from .expectation import coefficients, expected_deviations
from .fit import exponent, mean, root_mean, slope
from .sphere import inner_products, log_mean_exp

VIEW_SEED = 2_000_003  # one draw of the views for every encoder
DIM = 64
BATCH = 256
# Exponents are fitted from the number of negatives on at which what the expansion neglects is small: its first-order
# terms, relative to the limit, are below this.
SMALL = 1 / 16
LEAST_POINTS = 3  # of a fit, if the range ends before


def digits(
    seed: int, trained: bool, epochs: int, images: int, temperatures: list[float], doublings: int, draws: int
) -> dict[str, Any]:
    """Features of the digit images: the distribution of negatives is that of all views, each as likely as any other.

    Args:
        seed: of the encoder, its training and the draws.
        trained: or as initialised.
        epochs: of the training.
        images: held-out images, each with two views; anchors are both.
        temperatures: of the loss.
        doublings: the largest number of negatives is 2 to this.
        draws: of the negatives, for the spread.
    """
    data = load(torch.device("cpu"))
    if trained:
        encoder = train_encoder(
            CONTRASTIVE, data.train_images, dim=DIM, epochs=epochs, batch=BATCH, seed=seed, backend=None
        )
    else:
        encoder = new_encoder(DIM, seed, torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(VIEW_SEED)
    chosen = data.held_out_images[:images]
    with torch.no_grad():
        views = [encoder(augment(chosen, generator)).double() for _ in range(2)]
    x, y = (F.normalize(rows, dim=-1) for rows in views)
    features, partners = torch.cat([x, y]), torch.cat([y, x])
    return {
        "alignment": alignment(x, y).item(),
        "uniformity": uniformity(features).item(),
        "temperatures": [_finite(features, partners, tau, doublings, draws, seed) for tau in temperatures],
    }


def _finite(
    features: Tensor, partners: Tensor, temperature: float, doublings: int, draws: int, seed: int
) -> dict[str, Any]:
    kernel = (features @ features.T / temperature).exp()  # the expectation needs each pair's own value
    positives = ((features * partners).sum(-1) / temperature).exp()
    weights = torch.full((len(features),), 1 / len(features), dtype=torch.float64)
    return _measured(features, partners, features, weights, kernel, positives, temperature, doublings, draws, seed)


def uniform(seed: int, dim: int, temperatures: list[float], doublings: int, draws: int) -> dict[str, Any]:
    """Uniform features that are perfectly aligned, where the limit is known in closed form.

    All anchors are alike, and of a negative only the inner product with the anchor counts: the nodes of its quadrature
    stand for all values.

    Args:
        seed: of the draws.
        dim: of the features.
        temperatures: of the loss.
        doublings: the largest number of negatives is 2 to this.
        draws: of the negatives, for the spread.
    """
    nodes, weights = inner_products(dim)
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    negatives = torch.stack([nodes, (1 - nodes.square()).sqrt()], dim=-1)
    cells = []
    for tau in temperatures:
        kernel, positives = (nodes / tau).exp()[None], torch.tensor([math.exp(1 / tau)], dtype=torch.float64)
        found = _measured(anchor, anchor, negatives, weights, kernel, positives, tau, doublings, draws, seed)
        cells.append({"closed_form": -1 / tau + log_mean_exp(dim, 1 / tau), **found})
    return {"temperatures": cells}


def _measured(
    x: Tensor,
    y: Tensor,
    negatives: Tensor,
    weights: Tensor,
    kernel: Tensor,
    positives: Tensor,
    temperature: float,
    doublings: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The loss of anchors x with positives y, a negative being the j-th of all with probability ``weights[j]``."""
    limits = (kernel @ weights).log() - positives.log()
    deviations = expected_deviations(kernel, weights, positives, range(doublings + 1))
    first, variance = coefficients(kernel, weights, positives)
    # One draw for all anchors, as from a queue: what they have in common remains.
    influence = (kernel / (kernel @ weights)[:, None]).mean(0)
    of_batch = (influence - 1).square() @ weights

    counts = [4**m for m in range(doublings // 2 + 1)]
    generator = np.random.default_rng(seed)
    anchor, batch = np.empty((2, draws, len(counts)))
    for column, count in enumerate(counts):
        for row in range(draws):
            drawn = torch.from_numpy(generator.multinomial(count, weights.numpy())).double()
            loss = info_nce(
                x,
                y,
                negatives=negatives,
                negative_log_weights=drawn.log(),  # how often each was drawn; -inf leaves it out
                temperature=temperature,
                in_batch=False,
                reduction="none",
            )
            away = loss - math.log(count) - limits - deviations[:, 2 * column]
            anchor[row, column], batch[row, column] = away.square().mean().item(), away.mean().item() ** 2
    # Two anchors of an image are one observation.
    pairs = deviations.view(2, len(x) // 2, -1).mean(0) if len(x) > 1 else deviations
    terms = (first + 1.5 * variance).mean().item()  # c + Var: what there is of first order, without its signs
    return {
        "temperature": temperature,
        "limit": limits.mean().item(),
        **_expected(pairs.numpy(), first.mean().item(), terms),
        **_spread("anchor", anchor, counts, variance.mean().item(), terms),
        **_spread("batch", batch, counts, of_batch.item(), terms),
    }


def _start(counts: Sequence[float], terms: float) -> int:
    """The first of the counts at which terms of first order are small."""
    ahead = sum(terms / count > SMALL for count in counts)
    return max(0, min(ahead, len(counts) - LEAST_POINTS))


def _expected(deviations: NDArray[np.float64], coefficient: float, terms: float) -> dict[str, Any]:
    """The deviation of the expectation, from observations `(R, M)` at 1, 2, 4, … negatives."""
    counts = [2.0**m for m in range(deviations.shape[1])]
    start = _start(counts, terms)
    curve = deviations.mean(0)
    if len(deviations) > 1:
        estimate = exponent(deviations[:, start:], counts[start:], mean)._asdict()
    else:  # exact: there is nothing to resample
        estimate = dict.fromkeys(("value", "low", "high"), slope(curve[start:], counts[start:]))
    return {
        "deviations": curve.tolist(),
        "fitted_from": counts[start],
        "exponent": estimate,
        "coefficient": float(curve[-1] * counts[-1]),
        "predicted_coefficient": coefficient,
    }


def _spread(
    name: str, squares: NDArray[np.float64], counts: Sequence[int], variance: float, terms: float
) -> dict[str, Any]:
    """The root mean square deviation of one draw from its expectation, from squares `(draws, M)`."""
    start = _start(counts, terms)
    found = root_mean(squares)
    return {
        "counts": list(counts),
        f"{name}_spread": found.tolist(),
        f"{name}_fitted_from": counts[start],
        f"{name}_exponent": exponent(squares[:, start:], counts[start:], root_mean)._asdict(),
        # Of all counts of the fit, each of which has few draws.
        f"{name}_coefficient": float(root_mean((squares * np.asarray(counts))[:, start:]).mean()),
        f"{name}_predicted_coefficient": math.sqrt(variance),
    }
