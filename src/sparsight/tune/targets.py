"""What a recipe has to reach: a speed-up, a loss of at most so many points, milliseconds; and which one is chosen of those that do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..errors import PruneError

USUAL_LOSS = 1.0
"""Points that may be lost where nothing is said."""


class Measured(Protocol):
    """quality, and change of the unpruned model's: fractions. cost: in the engine's unit. speedup: against the unpruned model."""

    @property
    def quality(self) -> float: ...

    @property
    def change(self) -> float: ...

    @property
    def cost(self) -> float: ...

    @property
    def speedup(self) -> float: ...


Row = TypeVar("Row", bound=Measured)


@dataclass(frozen=True)
class Target:
    """speedup: at least. loss: points lost at most. ms: milliseconds at most. None: no matter."""

    speedup: float | None = None
    loss: float | None = None
    ms: float | None = None

    def __str__(self) -> str:
        words = [
            f"speed-up at least {self.speedup:g}" if self.speedup is not None else "",
            f"at most {self.ms:g} ms" if self.ms is not None else "",
            f"loss at most {self.loss:g} points" if self.loss is not None else "",
        ]
        return ", ".join(filter(None, words))

    def shortfall(self, row: Measured) -> float:
        """How far a recipe is from the target, as a share of what is asked (of loss in tens of points); 0 where it is met."""
        gaps = [
            self.speedup / row.speedup - 1 if self.speedup is not None else 0.0,
            row.cost / self.ms - 1 if self.ms is not None else 0.0,
            (-100 * row.change - self.loss) / 10 if self.loss is not None else 0.0,
        ]
        return sum(max(0.0, gap) for gap in gaps if gap > 1e-9)

    def cost_gap(self, row: Measured) -> float:
        """How far its cost alone is from the target; 0 or less where that is met."""
        found = [self.speedup / row.speedup - 1] if self.speedup is not None else []
        found += [row.cost / self.ms - 1] if self.ms is not None else []
        return max(found, default=0.0)

    def choose(self, rows: Sequence[Row]) -> Row | None:
        """Of the recipes that meet the target the best one, or the cheapest if loss alone is limited; else the nearest. None of none."""
        good = [row for row in rows if self.shortfall(row) == 0]
        if not good:
            return min(rows, key=lambda row: (self.shortfall(row), -row.quality), default=None)
        if self.speedup is None and self.ms is None:
            return min(good, key=lambda row: (row.cost, -row.quality))
        return max(good, key=lambda row: (row.quality, -row.cost))


def make_target(speedup: float | None, loss: float | None, ms: float | None, engine: str) -> Target:
    """The target; without any, a loss of at most a point. Raises PruneError for numbers that mean nothing."""
    for name, value, least in (("speedup", speedup, 1.0), ("loss", loss, 0.0), ("ms", ms, 0.0)):
        if value is not None and not (math.isfinite(value) and value >= least and (name != "ms" or value > 0)):
            what = {"speedup": "times, 1 or more", "loss": "points, 0 or more", "ms": "milliseconds, above 0"}[name]
            raise PruneError(f"{name}={value:g} is no target; give {what}")
    if ms is not None and engine == "macs":
        raise PruneError(f"ms={ms:g} is a time, and engine=macs measures none; choose an engine, such as engine=onnxruntime")
    if speedup is None and loss is None and ms is None:
        return Target(loss=USUAL_LOSS)
    return Target(speedup, loss, ms)


def front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other one beats in quality and cost at once, from cheap to dear."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.cost, -row.quality)):
        if not found or row.quality > found[-1].quality:
            found.append(row)
    return found
