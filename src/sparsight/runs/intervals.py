"""95% intervals of shares and of paired differences of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054

METHOD = (
    "95% intervals. Differences of top-1 and top-5: paired over images, normal approximation with half an image added to each of the "
    "four cells (Agresti and Min 2005). Agreement: Wilson's interval of a share."
)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired(after: Sequence[int], before: Sequence[int]) -> Interval:
    """Difference of two shares of successes on the same images, after minus before.

    The plain normal interval has no width where no image changes; half an image in each of the four cells of the paired table
    mends that for small samples and is not felt in large ones (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    n = len(after)
    won = sum(a > b for a, b in zip(after, before, strict=True))
    lost = sum(a < b for a, b in zip(after, before, strict=True))
    total = n + 2
    middle = (won - lost) / total
    half = Z * math.sqrt((won + lost + 1) / total - middle**2) / math.sqrt(total)
    return Interval((won - lost) / n, max(-1.0, middle - half), min(1.0, middle + half))


def share(hits: Sequence[int]) -> Interval:
    """A share of successes with Wilson's interval."""
    n = len(hits)
    p = sum(hits) / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def paired_means(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Difference of two means over the same questions, for scores between right and wrong (VQA accuracy): normal approximation."""
    n = len(after)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    middle = sum(differences) / n
    variance = sum((value - middle) ** 2 for value in differences) / max(1, n - 1)
    half = Z * math.sqrt(variance / n)
    return Interval(middle, max(-1.0, middle - half), min(1.0, middle + half))
