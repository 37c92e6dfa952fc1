"""robustness_page(...) -> str: what corruptions do as one page: accuracy, effective rank and kept patches, corruption by corruption."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runs.intervals import Interval
from .page import counted, render
from .plots import BOTTOM, HEIGHT, Plot, Point, Series, ends

if TYPE_CHECKING:
    from ..evaluation.corruption_rows import CorruptionRow, Robustness

MEASURES = {"top1": "Top-1, %", "rank_relative": "Effective rank, change %", "kept": "Kept again, %"}
NAMES = 92
"""Room for the names of corruptions, in the units of a plot."""
HEADS = ("Recipe", "Corruption", "Top-1 %", "Change", "Rank", "Rank change", "Of rank, %", "Kept again %")
AVERAGED = ("Recipe", "Severity", "Top-1 %", "Rank", "Rank change", "Of rank, %", "Kept again %")


def robustness_page(done: Robustness) -> str:
    names = {row.corruption for row in done.rows if row.severity}
    facts = (f"data {done.data}", counted(done.images, "image"), done.device, done.precision, done.date[:10])
    return render(
        "robustness.html",
        done=done,
        title=f"{done.model}: {counted(len(done.recipes) - 1, 'recipe')} under {counted(len(names), 'corruption')}",
        facts=facts,
        heads=HEADS,
        groups=[(f"severity {level}" if level else "clean", rows_of(done, level)) for level in (0, *done.severities)],
        plots=[made for name in MEASURES for level in done.severities if (made := plot(done, level, name)).points],
        averaged=AVERAGED,
        averages=[(recipe, severity, top1, *others) for _, severity, recipe, top1, _, *others in done.averages()],
    )


def rows_of(done: Robustness, severity: int) -> list[CorruptionRow]:
    return [row for row in done.rows if row.severity == severity]


def plot(done: Robustness, severity: int, measure: str) -> Plot:
    """A measure, corruption by corruption, the recipes side by side; accuracy with that of the clean images."""
    rows = (rows_of(done, 0) if measure == "top1" else []) + rows_of(done, severity)
    names = tuple(dict.fromkeys(row.corruption for row in rows))
    step = 0.7 / max(1, len(done.recipes))
    series = [
        Series(
            recipe,
            look,
            points=[
                found
                for row in rows
                if row.recipe == recipe
                and (found := point(row, measure, names.index(row.corruption) + step * (look - (len(done.recipes) - 1) / 2)))
            ],
        )
        for look, recipe in enumerate(done.recipes)
    ]
    title = f"{MEASURES[measure]}, severity {severity}"
    return Plot(series, None, "", title, height=HEIGHT + NAMES - 24, bottom=HEIGHT - BOTTOM, names=names)


def point(row: CorruptionRow, measure: str, x: float) -> Point | None:
    """A number of the row; None where it was not measured."""
    found = getattr(row, measure)
    if found is None:
        return None
    value, span = (found.value, found) if isinstance(found, Interval) else (found, None)
    label = f"{row.recipe}, {row.corruption}{f' {row.severity}' if row.severity else ''}: {MEASURES[measure].partition(',')[0]} {100 * value:.1f}%"
    return Point(x, 100 * value, label, upright=ends(span, 100))
