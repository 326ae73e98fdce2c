"""Student's interval of a mean of few values: what training again from another seed would do to it."""

from collections.abc import Sequence
from math import cos, fsum, pi, sin, sqrt, tan


def mean_interval(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean, and both ends of its two-sided t interval. values: two or more independent ones, taken as normal.

    Raises ValueError for fewer.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"expected two values or more, got {n}")
    mean = fsum(values) / n
    deviation = sqrt(fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = quantile(confidence, n - 1) * deviation / sqrt(n)
    return mean, mean - half, mean + half


def quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| < t) = confidence, of Student's distribution with `freedom` degrees, a whole number from 1."""
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if _within(middle, freedom) > confidence else (middle, high)
    return sqrt(freedom) * tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): the finite series for whole degrees (Abramowitz and Stegun, 26.7.3 and 4)."""
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (k - 1) / k
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
