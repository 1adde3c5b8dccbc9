"""Reference values for the metrics."""

import math

from .arguments import check_integer, check_positive


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
    check_integer("dim", dim, 1)
    t = check_positive("t", t)
    # The series of 0F1, sum_k t^2k / ((D/2)_k k!), by the logarithms of its terms, outward from the largest.
    half = dim / 2

    def log_term(k: int) -> float:
        return 2 * k * math.log(t) - (math.lgamma(half + k) - math.lgamma(half)) - math.lgamma(k + 1)

    peak = max(0, round((1 - half + math.hypot(half - 1, 2 * t)) / 2))
    largest = log_term(peak)
    terms = [1.0]
    for step, last in ((1, None), (-1, 0)):
        k = peak
        while k != last and (term := math.exp(log_term(k + step) - largest)) > 1e-20:
            k += step
            terms.append(term)
    return -2 * t + largest + math.log(math.fsum(terms))
