"""Stacked bars as inline SVG: one bar for each row, one colour for each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .plots import COLOURS, Axis

WIDTH, LABEL, RIGHT, TOP, THICK, GAP, FOOT = 1120, 270, 96, 8, 24, 14, 50


@dataclass(frozen=True)
class Bar:
    """A row: its parts one behind the other, and what stands at its end."""

    name: str
    parts: tuple[float, ...]
    note: str


def bars(rows: Sequence[Bar], names: Sequence[str], title: str) -> str:
    """The bars over one axis from 0. Pointing at a part shows its name and value."""
    bottom = TOP + len(rows) * (THICK + GAP)
    x = Axis(0.0, max(sum(row.parts) for row in rows) or 1.0, LABEL, WIDTH - RIGHT)
    parts = [f'<svg viewBox="0 0 {WIDTH} {bottom + FOOT}" role="img" aria-label="{escape(title)}">']
    for tick in x.ticks:
        parts.append(f'<path class="grid" d="M{x.at(tick):.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x.at(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    for index, row in enumerate(rows):
        y = TOP + GAP / 2 + index * (THICK + GAP)
        parts.append(f'<text class="title" x="{LABEL - 10}" y="{y + THICK / 2 + 5}" text-anchor="end">{escape(row.name)}</text>')
        start = 0.0
        for look, (name, value) in enumerate(zip(names, row.parts, strict=True)):
            label = f"<title>{escape(row.name)}, {escape(name)}: {value:.4g}</title>"
            width = x.at(start + value) - x.at(start)
            parts.append(
                f'<rect x="{x.at(start):.2f}" y="{y}" width="{width:.2f}" height="{THICK}" fill="{COLOURS[look]}">{label}</rect>'
            )
            start += value
        parts.append(f'<text x="{x.at(start) + 8:.1f}" y="{y + THICK / 2 + 5}">{escape(row.note)}</text>')
    middle = (LABEL + WIDTH - RIGHT) / 2
    parts.append(f'<text class="title" x="{middle:.0f}" y="{bottom + FOOT - 8}" text-anchor="middle">{escape(title)}</text>')
    return f"<figure>{''.join(parts)}</svg></figure>{key(names)}"


def key(names: Sequence[str]) -> str:
    """Names beside their colours."""
    squares = (f'<svg width="16" height="16"><rect width="16" height="16" rx="2" fill="{colour}"/></svg>' for colour in COLOURS)
    entries = "".join(f"<li>{square}{escape(name)}</li>" for square, name in zip(squares, names))
    return f'<ul class="legend">{entries}</ul>'
