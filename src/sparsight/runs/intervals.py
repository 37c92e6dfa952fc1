"""95% intervals of shares and of paired differences of shares, and the spread of repeated measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Z = statistics.NormalDist().inv_cdf(0.975)

METHOD = (
    "95% intervals. Differences of top-1 and top-5: paired over images, normal approximation with half an image added to each of the "
    "four cells (Agresti and Min 2005). Agreement: Wilson's interval of a share. Pictures made of one photo count as a cluster."
)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def read_intervals(data: dict[str, Any], *names: str) -> dict[str, Any]:
    """The data of a result that was read from JSON, with these entries as intervals again; None stays None."""
    return {**data, **{name: Interval(**data[name]) if data[name] else None for name in names}}


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


def clustered(values: Sequence[float], photos: Sequence[str]) -> tuple[float, float, int]:
    """Variance of the mean of values that belong together where their photo is the same, the quantile to use with it, number of photos.

    The deviations from the mean are summed photo by photo, and Student's t has one degree of freedom less than there are photos.
    """
    from scipy.stats import t

    middle, sums = statistics.fmean(values), dict.fromkeys(photos, 0.0)
    for value, photo in zip(values, photos, strict=True):
        sums[photo] += value - middle
    count = len(sums)
    if count < 2:
        return math.inf, Z, count
    variance = count / (count - 1) * sum(total**2 for total in sums.values()) / len(values) ** 2
    return variance, float(t.ppf(0.975, count - 1)), count


def paired(after: Sequence[int], before: Sequence[int], photos: Sequence[str] | None = None) -> Interval:
    """Difference of two shares of successes on the same images, after minus before.

    The plain normal interval has no width where no image changes; half an image in each of the four cells of the paired table
    mends that for small samples and is not felt in large ones (Agresti and Min, Statistics in Medicine 24, 2005). SciPy does not
    have it. photos: what each image was made of, where several were made of one photo; the half images are then half photos.
    """
    n = len(after)
    if photos is not None:
        differences = [a - b for a, b in zip(after, before, strict=True)]
        variance, z, count = clustered(differences, photos)
        middle, half = sum(differences) / n, z * math.sqrt(variance + 1 / (count + 2) ** 2)
        return Interval(middle, max(-1.0, middle - half), min(1.0, middle + half))
    won = sum(a > b for a, b in zip(after, before, strict=True))
    lost = sum(a < b for a, b in zip(after, before, strict=True))
    total = n + 2
    middle = (won - lost) / total
    half = Z * math.sqrt((won + lost + 1) / total - middle**2) / math.sqrt(total)
    return Interval((won - lost) / n, max(-1.0, middle - half), min(1.0, middle + half))


def share(hits: Sequence[int], photos: Sequence[str] | None = None) -> Interval:
    """A share of successes with Wilson's interval. photos: as for `paired`; the interval is then that of as many independent images as
    have the same variance."""
    from scipy.stats import binomtest

    value = sum(hits) / len(hits)
    if photos is not None:
        variance, z, count = clustered(hits, photos)
        n = min(float(len(hits)), value * (1 - value) / variance) if 0 < variance < math.inf else float(count)
        middle, half = value + z * z / (2 * n), z * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2)
        return Interval(value, max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n)))
    found = binomtest(sum(hits), len(hits))
    low, high = found.proportion_ci(method="wilson")
    return Interval(value, float(low), float(high))


def paired_means(after: Sequence[float], before: Sequence[float], photos: Sequence[str] | None = None) -> Interval:
    """Difference of two means over the same questions, for scores between right and wrong (VQA accuracy): normal approximation.
    photos: as for `paired`."""
    differences = [a - b for a, b in zip(after, before, strict=True)]
    middle = statistics.fmean(differences)
    half = Z * (statistics.stdev(differences) if len(differences) > 1 else 0.0) / math.sqrt(len(differences))
    if photos is not None:
        variance, z, _ = clustered(differences, photos)
        half = z * math.sqrt(variance)
    return Interval(middle, max(-1.0, middle - half), min(1.0, middle + half))
