"""95% intervals of shares and of paired differences of shares, and the spread of repeated measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z = statistics.NormalDist().inv_cdf(0.975)

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


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a number measured several times."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f}, {self.runs} runs)"


def spread(values: Iterable[float]) -> Spread:
    """Median and quartiles of at least two values."""
    found = list(values)
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return Spread(middle, low, high, len(found))


def paired(after: Sequence[int], before: Sequence[int]) -> Interval:
    """Difference of two shares of successes on the same images, after minus before.

    The plain normal interval has no width where no image changes; half an image in each of the four cells of the paired table
    mends that for small samples and is not felt in large ones (Agresti and Min, Statistics in Medicine 24, 2005). SciPy does not
    have it.
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
    from scipy.stats import binomtest

    found = binomtest(sum(hits), len(hits))
    low, high = found.proportion_ci(method="wilson")
    return Interval(sum(hits) / len(hits), float(low), float(high))


def paired_means(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Difference of two means over the same questions, for scores between right and wrong (VQA accuracy): normal approximation."""
    differences = [a - b for a, b in zip(after, before, strict=True)]
    middle = statistics.fmean(differences)
    half = Z * (statistics.stdev(differences) if len(differences) > 1 else 0.0) / math.sqrt(len(differences))
    return Interval(middle, max(-1.0, middle - half), min(1.0, middle + half))
