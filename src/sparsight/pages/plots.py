"""Line plots as inline SVG: colours that stay apart under colour blindness, a marker shape for each series as well."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8629a", "#e69f00", "#3a9bd6", "#8a6d3b", "var(--ink)")
"""Okabe and Ito's, their yellow left out (too faint on white), purple and sky blue a little darker."""
DASHES = ("", "6 4", "2 3")
WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 14, 54


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points joined by a line; `look` numbers its colour and marker, `dash` its line."""

    name: str
    look: int
    dash: int = 0
    points: list[Point] = field(default_factory=list)

    @property
    def colour(self) -> str:
        return COLOURS[self.look % len(COLOURS)]


@dataclass(frozen=True)
class Axis:
    """Where numbers lie on the page."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Four to nine round numbers."""
        raw = (self.high - self.low) / 6
        size = 10 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [round(index * step, 10) for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(values: list[float], start: float, end: float, most: float = math.inf) -> Axis:
    """An axis that leaves a little air around the values; `most` is the highest that can be."""
    low, high = min(values), max(values)
    air = 0.07 * (high - low) or max(abs(high) * 0.05, 0.5)
    return Axis(low - air, min(high + air, most + 0.2 * air), start, end)


def plot(series: list[Series], base: Point, x_title: str, y_title: str) -> str:
    """The series and the unpruned model's point, with dotted lines through it. Pointing at a marker shows its label."""
    points = [base, *(p for s in series for p in s.points)]
    x = axis([p.x for p in points], LEFT, WIDTH - RIGHT)
    y = axis([p.y for p in points], HEIGHT - BOTTOM, TOP, most=100)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_title)} against {escape(x_title)}">']
    parts += frame(x, y, x_title, y_title)
    bx, by = x.at(base.x), y.at(base.y)
    parts.append(f'<path class="base" d="M{LEFT} {by:.1f}H{WIDTH - RIGHT}M{bx:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for s in series:
        path = "L".join(f"{x.at(p.x):.1f} {y.at(p.y):.1f}" for p in sorted(s.points, key=lambda p: p.x))
        dash = f' stroke-dasharray="{DASHES[s.dash % len(DASHES)]}"' if s.dash else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{s.colour}" stroke-width="1.6" stroke-opacity=".75"{dash}/>')
    for s in series:
        parts += [dot(x.at(p.x), y.at(p.y), s, p.label) for p in s.points]
    parts.append(f'<circle cx="{bx:.1f}" cy="{by:.1f}" r="5.5" class="origin"><title>{escape(base.label)}</title></circle>')
    return "".join([*parts, "</svg>"])


def frame(x: Axis, y: Axis, x_title: str, y_title: str) -> list[str]:
    """Grid lines, numbers and titles."""
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks:
        parts.append(f'<path class="grid" d="M{x.at(tick):.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x.at(tick):.1f}" y="{bottom + 19}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y.at(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y.at(tick) + 4.5:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="title" x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_title)}</text>')
    place = f'transform="translate(16 {(TOP + bottom) / 2:.0f}) rotate(-90)"'
    return [*parts, f'<text class="title" {place} text-anchor="middle">{escape(y_title)}</text>']


def dot(cx: float, cy: float, series: Series, label: str) -> str:
    """A marker whose shape belongs to the series."""
    r = 5.0
    corners = {
        1: ((-r, -r), (r, -r), (r, r), (-r, r)),
        2: ((0, -r * 1.3), (r * 1.2, r), (-r * 1.2, r)),
        3: ((0, -r * 1.4), (r * 1.4, 0), (0, r * 1.4), (-r * 1.4, 0)),
        4: ((0, r * 1.3), (r * 1.2, -r), (-r * 1.2, -r)),
    }.get(series.look % 5)
    style = f'fill="{series.colour}" stroke="var(--paper)" stroke-width="1.2"'
    title = f"<title>{escape(label)}</title>"
    if corners is None:
        return f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{r}" {style}>{title}</circle>'
    path = "L".join(f"{cx + dx:.1f} {cy + dy:.1f}" for dx, dy in corners)
    return f'<path d="M{path}Z" {style}>{title}</path>'


def legend(series: list[Series]) -> str:
    """Names beside their markers."""
    entries = []
    for s in series:
        dash = f' stroke-dasharray="{DASHES[s.dash % len(DASHES)]}"' if s.dash else ""
        line = f'<path d="M1 8H33" stroke="{s.colour}" stroke-width="1.6" stroke-opacity=".75"{dash}/>'
        entries.append(
            f'<li><svg width="34" height="16" viewBox="0 0 34 16">{line}{dot(17, 8, s, s.name)}</svg>{escape(s.name)}</li>'
        )
    return f'<ul class="legend">{"".join(entries)}</ul>'
