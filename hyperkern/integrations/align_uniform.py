"""Drop-in for the code of the alignment and uniformity paper.

Replace ``from align_uniform import align_loss, uniform_loss`` by
``from hyperkern.integrations.align_uniform import align_loss, uniform_loss``. Values and gradients are those of
the original, which normalises nothing. Where the original returns nan or cannot run, these do better: half
precision works, wide features without normalisation stay finite, second derivatives exist, the gradient of
identical pairs is 0, and fewer than two rows raise a `ValueError` instead of returning nan.
"""

from torch import Tensor

from .. import losses


def align_loss(x: Tensor, y: Tensor, alpha: float = 2) -> Tensor:
    """``mean_i |x_i - y_i|^alpha``.

    Args:
        x: ``(N, D)`` features, normalised by the caller; or with further dimensions, ``(N, D, ...)``, over which the
            mean is taken as well.
        y: features of the partners, like ``x``.
        alpha: exponent, > 0.

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong shapes or ``alpha <= 0``.

    Source:
        Wang & Isola, ICML 2020, Figure 5.
    """
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() > 2 and x.shape == y.shape:
        x, y = (side.movedim(1, -1).flatten(end_dim=-2) for side in (x, y))
    return losses.alignment(x, y, alpha=alpha, normalize=False)


def uniform_loss(x: Tensor, t: float = 2) -> Tensor:
    """``log mean_{i<j} exp(-t |x_i - x_j|^2)``.

    Args:
        x: ``(N, D)`` features, N >= 2, normalised by the caller.
        t: inverse width of the Gaussian potential, > 0.

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError: the input is no floating tensor.
        ValueError: a wrong shape, fewer than two rows, or ``t <= 0``.

    Source:
        Wang & Isola, ICML 2020, Figure 5.
    """
    loss = losses.uniformity(x, t=t, normalize=False, max_norm=1.0)
    if loss.dim():  # `pdist` knows no batches
        raise ValueError(f"x must have shape (N, D), got {tuple(x.shape)}")
    return loss
