"""vlm_report(...) -> str: a comparison of a vision-language model as one page: tables, accuracy against tokens, pictures and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..runs.vlm_comparison import SPLITS
from ..runs.vlm_counts import MEASURES
from .page import DASH, counted, fitting, render
from .plots import Plot, Point, Series, around

if TYPE_CHECKING:
    from ..runs.vlm_comparison import VlmComparison, VlmRow

PLOTTED = ("accuracy", "yes_no", "name", "count", "place", "where", "chair_i", "recall")


def vlm_report(done: VlmComparison, exhibits: Sequence[Any]) -> str:
    """The page, with every row of the comparison. exhibits: the pictures of `evaluation.vlm_gallery`."""
    room = fitting(len(one.picture) + sum(len(overlay) for overlay, _ in one.overlays.values()) for one in exhibits)
    facts = (
        f"data: {done.data}", counted(done.questions, "question"), counted(len(done.pictures), "picture"), f"{done.capacity} visual tokens a picture",
        done.device, counted(done.threads, "thread"), done.precision, done.date[:10],
    )  # fmt: skip
    return render(
        "vlm_report.html",
        done=done,
        title=f"{done.model}: {counted(len(done.rows) - 1, 'recipe')} on {counted(len(done.pictures), 'picture')}",
        facts=facts,
        splits=[(split, SPLITS[split], done.size(split)) for split in done.splits],
        measures=[(name, MEASURES[name].title if name in MEASURES else name) for name in done.measures],
        groups=groups(done),
        plots=[pair for name in PLOTTED if name in done.measures if (pair := plots(done, name))],
        exhibits=exhibits[:room],
        others=len(exhibits) - room if exhibits else 0,
        written=written,
    )


def written(name: str, value: float | None) -> str:
    """A score as the tables show it."""
    known = MEASURES.get(name)
    return DASH if value is None else f"{(known.scale if known else 100.0) * value:.1f}"


def groups(done: VlmComparison) -> list[tuple[str, list[VlmRow]]]:
    """Rows by budget, in their order."""
    found: dict[str, list[VlmRow]] = {}
    for row in done.rows[1:]:
        found.setdefault(row.group or "own budget", []).append(row)
    return list(found.items())


def plots(done: VlmComparison, measure: str) -> list[Plot]:
    """A score against the tokens that were left, one plot for each split on which it was asked, all on one scale."""
    title = MEASURES[measure].title
    found = []
    for split in done.splits:
        base = done.value(done.rows[0], measure, split)
        if base is None:
            continue
        name = f"{title}, {SPLITS[split]}"
        origin = Point(float(done.capacity), 100 * base, f"unpruned: {title} {100 * base:.1f}")
        found.append(
            Plot(
                series_of(done, measure, split),
                origin,
                "Visual tokens left of a picture",
                name,
                log=True,
                better=-(MEASURES[measure].better == "up"),
            )
        )
    heights = [height for one in found for height in one.heights]
    return [one.between(min(heights), max(heights)) for one in found]


def series_of(done: VlmComparison, measure: str, split: str) -> list[Series]:
    """One line per method over its budgets."""
    found: dict[str, Series] = {}
    labels = list(dict.fromkeys(row.label for row in done.rows[1:]))
    for row in done.rows[1:]:
        value = done.value(row, measure, split)
        if value is None or not row.kept:
            continue
        line = found.setdefault(row.label, Series(row.label, labels.index(row.label), labels.index(row.label) // 8))
        label = f"{row.recipe}: {MEASURES[measure].title} {100 * value:.1f} at {row.tokens} tokens"
        upright = around(done.change(row, measure, split), 100 * value)
        line.points.append(Point(row.kept, 100 * value, label, upright=upright))
    return list(found.values())
