"""Reference values for the metrics."""

import math

from .losses._inputs import check_positive


def uniformity_limit(dim: int, t: float = 2.0) -> float:
    r"""Expected uniformity of the uniform distribution on the unit sphere :math:`S^{D-1}`.

    .. math:: \log E\, e^{-t \lVert x - y \rVert^2} = -2t + \log {}_0F_1(; D/2; t^2)

    No distribution has a smaller expectation. The uniformity of N samples is taken over distinct pairs and
    scatters around it, so a spread-out finite set can fall below.

    Args:
        dim: feature dimension D, >= 1.
        t: inverse width of the Gaussian potential, > 0.

    Returns:
        The value, in ``[-4t, 0]``; about ``-2t`` for large D.

    Raises:
        TypeError: ``dim`` is no integer or ``t`` no number.
        ValueError: ``dim < 1`` or ``t <= 0``.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.2 and Appendix A (the minimiser); the closed form is the generating
        function of the first coordinate of a uniform point.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an integer, got {type(dim).__name__}")
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    check_positive("t", t)
    # The series of 0F1, sum_k t^2k / ((D/2)_k k!), by the logarithms of its terms: the largest is near k = t.
    terms = [0.0]
    while len(terms) < 2 * t or terms[-1] > max(terms) - 60:
        k = len(terms)
        terms.append(terms[-1] + 2 * math.log(t) - math.log(dim / 2 + k - 1) - math.log(k))
    largest = max(terms)
    return -2 * t + largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
