"""Where the lines, dots and bars of a plot lie; `plots.html` draws them as SVG. Colours and shapes stay apart without colour vision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from ..runs.intervals import Interval, Spread

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8629a", "#e69f00", "#3a9bd6", "#8a6d3b", "var(--ink)")
"""Okabe and Ito's, their yellow left out (too faint on white), purple and sky blue a little darker."""
DASHES = ("", "6 4", "2 3")
WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 72, 18, 14, 54


Ends = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A place in the units of the plot, and what pointing at it shows. across, upright: the ends of its intervals, if they are known."""

    x: float
    y: float
    label: str
    across: Ends | None = None
    upright: Ends | None = None

    @property
    def placed(self) -> bool:
        """Whether it has a place."""
        return math.isfinite(self.x) and math.isfinite(self.y)


@dataclass(frozen=True)
class Series:
    """Points joined by a line; `look` numbers its colour and marker, `dash` its line."""

    name: str
    look: int
    dash: int = 0
    points: list[Point] = field(default_factory=list)

    @property
    def key(self) -> str:
        """By what the legend knows it."""
        return f"{self.look}-{self.dash}"

    @property
    def colour(self) -> str:
        return COLOURS[self.look % len(COLOURS)]

    @property
    def dashes(self) -> str:
        return DASHES[self.dash % len(DASHES)]

    def marker(self, x: float, y: float) -> str:
        """The outline of a marker, whose shape belongs to the series, as the path of an SVG."""
        r = 5.0
        corners = {
            1: ((-r, -r), (r, -r), (r, r), (-r, r)),
            2: ((0, -r * 1.3), (r * 1.2, r), (-r * 1.2, r)),
            3: ((0, -r * 1.4), (r * 1.4, 0), (0, r * 1.4), (-r * 1.4, 0)),
            4: ((0, r * 1.3), (r * 1.2, -r), (-r * 1.2, -r)),
        }.get(self.look % 5)
        if corners is None:
            return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
        return f"M{'L'.join(f'{x + dx:.1f} {y + dy:.1f}' for dx, dy in corners)}Z"


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` on a line from `start` to `end`; none above `most` has a tick."""

    low: float
    high: float
    start: float
    end: float
    most: float = math.inf

    def at(self, value: float) -> float:
        """Where a number lies, to a tenth of a unit."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        raw = (self.high - self.low) / 6
        size = 10 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(min(self.high, self.most) / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]


@dataclass(frozen=True)
class LogAxis(Axis):
    """Numbers above 0 whose doublings are equally far apart; a tick at every power of 2."""

    def at(self, value: float) -> float:
        """Where a number lies, to a tenth of a unit."""
        low, high = math.log2(self.low), math.log2(self.high)
        return round(self.start + (math.log2(value) - low) / (high - low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        return [2.0**power for power in range(math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1)]


def axis(values: list[float], start: float, end: float, most: float = math.inf) -> Axis:
    """An axis that leaves a little air around the finite values; `most` is the highest that can be."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    air = 0.07 * (high - low) or max(abs(high) * 0.05, 0.5)
    return Axis(low - air, min(high + air, most + 0.2 * air), start, end, most)


@dataclass(frozen=True)
class Plot:
    """Series, and the unpruned model's point with dotted lines through it.

    log: the horizontal axis doubles; span: of the vertical one. names: of the places 0, 1, 2 ... on the horizontal one, if these are no
    numbers; nothing is then joined. better: where the horizontal axis gets better, 1 right, -1 left; 0: there is no Pareto front.
    """

    series: list[Series]
    base: Point | None
    x_title: str
    y_title: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    log: bool = False
    span: Ends | None = None
    names: tuple[str, ...] = ()
    better: int = 0

    def between(self, low: float, high: float) -> Plot:
        """The same plot, its vertical axis from `low` to `high`."""
        return replace(self, span=(low, high))

    def drawn(self, series: Series) -> list[Point]:
        """The points of a series that have a place, from left to right."""
        return sorted((p for p in series.points if p.placed), key=lambda p: p.x)

    @cached_property
    def points(self) -> list[Point]:
        found = [point for series in self.series for point in series.points]
        return found if self.base is None else [self.base, *found]

    @cached_property
    def heights(self) -> list[float]:
        """Everything that the vertical axis has to reach."""
        return [height for point in self.points for height in (point.y, *(point.upright or ()))]

    @cached_property
    def front(self) -> list[Point]:
        """The Pareto front from its cheap end: points than which none is both higher and further on the better side; among equal ones the first."""
        ranked = sorted((p for p in self.points if p.placed), key=lambda p: (-self.better * p.x, -p.y))
        highest, found = -math.inf, list[Point]()
        for point in ranked if self.better else ():
            if point.y > highest:
                highest = point.y
                found.append(point)
        return found

    @cached_property
    def x(self) -> Axis:
        places = [place for point in self.points for place in (point.x, *(point.across or ()))]
        if self.names:
            return Axis(-0.6, len(self.names) - 0.4, self.left, self.right)
        if self.log:
            return LogAxis(min(places) / 1.2, max(places) * 1.2, self.left, self.right)
        return axis(places, self.left, self.right)

    @cached_property
    def y(self) -> Axis:
        return axis(list(self.span or self.heights), self.bottom, self.top, most=100)

    def line(self, points: list[Point]) -> str:
        """A line through points, as the path of an SVG."""
        return "M" + "L".join(f"{self.x.at(p.x)} {self.y.at(p.y)}" for p in points)

    def whiskers(self, point: Point) -> str:
        """The intervals of a point, as the path of an SVG."""
        x, y = self.x.at(point.x), self.y.at(point.y)
        parts = [f"M{self.x.at(point.across[0])} {y}H{self.x.at(point.across[1])}"] if known(point.across) else []
        parts += [f"M{x} {self.y.at(point.upright[0])}V{self.y.at(point.upright[1])}"] if known(point.upright) else []
        return "".join(parts)


def ends(span: Interval | Spread | None, scale: float = 1.0) -> Ends | None:
    """The ends of an interval in the units of a plot."""
    return None if span is None else (scale * span.low, scale * span.high)


def around(change: Interval | None, at: float) -> Ends | None:
    """The ends of a share's change, in percent, around where it has led; no share is below 0 or above 100."""
    if change is None:
        return None
    low, high = (at + 100 * (end - change.value) for end in (change.low, change.high))
    return max(0.0, low), min(100.0, high)


def known(ends: Ends | None) -> TypeGuard[Ends]:
    """Whether an interval can be drawn."""
    return ends is not None and all(map(math.isfinite, ends))


def by_recipe(rows: Sequence[Any], point: Callable[[Any], Point], x_title: str, y_title: str, better: int = 0) -> Plot:
    """A dot for each row of a result, the unpruned one first."""
    base, *others = map(point, rows)
    series = [Series(row.recipe, look, points=[one]) for look, (row, one) in enumerate(zip(rows[1:], others, strict=True))]
    return Plot(series, base, x_title, y_title, better=better)


@dataclass(frozen=True)
class Bar:
    """A row of parts one behind the other, and what stands at its end."""

    name: str
    parts: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class Bars:
    """Stacked bars over one axis from 0; `names` are those of the parts."""

    rows: Sequence[Bar]
    names: Sequence[str]
    title: str
    colours: Sequence[str] = COLOURS

    @property
    def axis(self) -> Axis:
        """From 0 to 100 percent of the width."""
        return Axis(0.0, max(sum(row.parts) for row in self.rows) or 1.0, 0, 100)
