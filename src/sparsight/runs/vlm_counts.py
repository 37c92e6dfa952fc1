"""Scores of questions as sums over sums, picture by picture: of any set of pictures, and paired differences with their 95% intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import Interval

DRAWS = 2000
METHOD = (
    f"95% intervals by picture: all questions of a picture are drawn together, {DRAWS} draws with replacement, the same pictures for both "
    "sides of a difference, percentiles. Where no answer differs the interval has no width. Seeds of a method are pooled."
)


@dataclass(frozen=True)
class Measure:
    """How a score is called and written: times `scale`; better "up", "down", or neither."""

    title: str
    better: str = "up"
    scale: float = 100.0


MEASURES = {
    "accuracy": Measure("all %"),
    "yes_no": Measure("yes/no %"),
    "name": Measure("name %"),
    "count": Measure("count %"),
    "place": Measure("place %"),
    "where": Measure("where %"),
    "chair_s": Measure("CHAIR_S", "down"),
    "chair_i": Measure("CHAIR_I", "down"),
    "recall": Measure("recall %"),
    "length": Measure("words", "", 1.0),
    "f1": Measure("POPE F1"),
    "yes": Measure("yes share", ""),
    "mme": Measure("MME"),
}
"""accuracy: of all questions but lists. chair_s: lists with something that is not there; chair_i: mentions of such things; recall: of
the objects; length: of a list in words. yes: share of answers that are yes. mme: accuracy of yes/no questions, read strictly, and share
of pictures with all of them right, times 100 (at most 200)."""

PAIR = ("mme_one", "mme_all")


@dataclass(frozen=True)
class Tally:
    """parts, wholes, asked: by name of a count, one number for each picture. A score is a sum of parts over a sum of wholes; asked: questions."""

    pictures: int
    parts: dict[str, list[float]] = field(default_factory=dict, repr=False)
    wholes: dict[str, list[float]] = field(default_factory=dict, repr=False)
    asked: dict[str, list[float]] = field(default_factory=dict, repr=False)

    @staticmethod
    def empty(pictures: int) -> Tally:
        return Tally(pictures)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Tally:
        """Read what `asdict` made."""
        return Tally(**data)

    def add(self, name: str, place: int, part: float, whole: float, asked: float = 1) -> None:
        """Count something at a picture."""
        for table, number in ((self.parts, part), (self.wholes, whole), (self.asked, asked)):
            table.setdefault(name, [0.0] * self.pictures)[place] += number

    @property
    def measures(self) -> list[str]:
        """Names of the scores that these counts give, in the order of `MEASURES`, others behind."""
        found = [name for name in self.parts if name not in PAIR] + ["mme"] * ("mme_all" in self.parts)
        return sorted(found, key=lambda name: [*MEASURES, name].index(name))

    def __str__(self) -> str:
        return f"counts of {self.pictures} pictures: {', '.join(self.measures)}"


def score(tally: Tally | Sequence[Tally], name: str, chosen: Sequence[bool] | None = None) -> float | None:
    """A score over the chosen pictures (all by default), several tallies pooled; None where nothing was asked."""
    value, _ = drawn(pooled(tally), name, chosen)
    return value


def difference(
    after: Tally | Sequence[Tally], before: Tally | Sequence[Tally], name: str, chosen: Sequence[bool] | None = None
) -> Interval | None:
    """Paired difference of a score over the chosen pictures, after minus before, with its interval by picture."""
    (a, many_a), (b, many_b) = drawn(pooled(after), name, chosen), drawn(pooled(before), name, chosen)
    if a is None or b is None:
        return None
    low, high = np.quantile(many_a - many_b, (0.025, 0.975))
    return Interval(a - b, float(low), float(high))


def p_value(
    after: Tally | Sequence[Tally], before: Tally | Sequence[Tally], name: str, chosen: Sequence[bool] | None = None
) -> float | None:
    """Two-sided probability of such a difference by chance: normal, with the deviation of the draws; 1 where nothing differs."""
    (a, many_a), (b, many_b) = drawn(pooled(after), name, chosen), drawn(pooled(before), name, chosen)
    if a is None or b is None:
        return None
    spread = float(np.std(many_a - many_b))
    return 1.0 if spread == 0 else 2 * statistics.NormalDist().cdf(-abs(a - b) / spread)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction of several probabilities that are read at once, in their order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, highest = [1.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        found[place] = highest
    return found


def pooled(tally: Tally | Sequence[Tally]) -> Tally:
    """Counts of several runs on the same pictures as one."""
    if isinstance(tally, Tally):
        return tally
    if len(tally) == 1:
        return tally[0]
    tables = [
        {name: np.sum([getattr(one, part)[name] for one in tally], axis=0).tolist() for name in tally[0].parts}
        for part in ("parts", "wholes", "asked")
    ]
    return Tally(tally[0].pictures, *tables)


def drawn(tally: Tally, name: str, chosen: Sequence[bool] | None) -> tuple[float | None, NDArray[np.float64]]:
    """A score over the chosen pictures, and the same of every draw of as many pictures."""
    if name == "mme":
        (one, many_one), (all_, many_all) = (drawn(tally, part, chosen) for part in PAIR)
        return (None if one is None or all_ is None else one + all_), many_one + many_all
    some = np.ones(tally.pictures, bool) if chosen is None else np.array(chosen, bool)
    if name not in tally.parts or not np.array(tally.asked[name])[some].any():
        return None, np.zeros(DRAWS)
    part, whole = (np.array(table[name], float)[some] for table in (tally.parts, tally.wholes))
    weights = draws_of(int(some.sum()))
    above, below = weights @ part, weights @ whole
    many = np.divide(above, below, out=np.zeros(DRAWS), where=below > 0)
    total = float(whole.sum())
    return (float(part.sum()) / total if total else 0.0), many


@lru_cache(maxsize=8)
def draws_of(pictures: int) -> NDArray[np.float64]:
    """How often each of so many pictures is in each draw, [DRAWS, pictures]; the same every time."""
    rng = np.random.default_rng(0)
    return rng.multinomial(pictures, [1 / pictures] * pictures, size=DRAWS).astype(np.float64)


def apart(span: Interval | None) -> bool:
    """Whether an interval leaves out zero."""
    return span is not None and not math.isnan(span.low) and (span.low > 0 or span.high < 0)
