"""report(...) -> str: a comparison as one page: table, quality against cost, kept patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .page import TIMES, counted, fitting, render
from .plots import Plot, Point, Series, around, ends

if TYPE_CHECKING:
    from ..look.gallery import Exhibit
    from ..runs.comparison import Comparison, Row

HEADS = ("Recipe", "Tokens", "Top-1 %", "Top-5 %", "Agreement %", "Cosine", "GMACs", "Images/s", "Speed-up", "Peak MB")
LABELLED = ("Top-1 %", "Top-5 %")
MOST = 12
"""Rows at a glance."""
MARKUP = 260
"""Characters around a thumbnail."""
MARKED = ("top1", "top5", "agreement", "cosine", "speedup")


def report(done: Comparison, exhibits: Sequence[Exhibit]) -> str:
    """The page, with every row of the comparison and the pictures of `gallery`."""
    h, w = done.image_size
    room = fitting(
        len(one.picture) + sum(len(thumb.overlay) + MARKUP for sites in one.sites.values() for thumb in sites) for one in exhibits
    )
    facts = (
        f"data {done.data}", f"{h} {TIMES} {w} pixels", done.device, counted(done.threads, "thread"),
        done.precision, f"batch {done.batch_size}", done.date[:10],
    )  # fmt: skip
    return render(
        "report.html",
        done=done,
        title=f"{done.model}: {counted(len(done.rows) - 1, 'recipe')} on {len(done.images)} images",
        facts=facts,
        heads=[head for head in HEADS if done.labelled or head not in LABELLED],
        best={measure: done.best(measure) for measure in MARKED},
        groups=groups(done),
        plots=plots(done),
        exhibits=exhibits[:room],
        others=len(exhibits) - room if exhibits else 0,
        glance=glance(done),
        headline=headline(done),
        measure=measure_of(done),
        unpruned=done.rows[0].recipe,
    )


@dataclass(frozen=True)
class Glance:
    """A row as a bar: quality with its 95% interval in percent, work as a share of the unpruned model's."""

    row: Row
    quality: float
    low: float
    high: float
    work: float

    def right(self, image: int) -> bool | None:
        """Whether an image was answered rightly; None where nobody knows."""
        hits = self.row.outcomes.top1
        return None if hits is None or len(hits) != len(self.row.outcomes.cosine) else bool(hits[image])


def glance(done: Comparison) -> list[Glance]:
    """The rows, the best first, among equals the cheapest; of many rows the best of each method."""
    first, *rows = done.rows
    if len(rows) >= MOST:
        best: dict[str, Row] = {}
        for row in rows:
            best[row.label] = max((row, best.get(row.label, row)), key=quality)
        rows = sorted(best.values(), key=quality)[-MOST + 1 :]
    found = []
    for row in (first, *rows):
        span = done.interval(row.recipe)
        value, low, high = (100 * part for part in (span.value, span.low, span.high)) if span else [100 * row.cosine] * 3
        found.append(Glance(row, value, low, high, row.macs / first.macs))
    return sorted(found, key=lambda one: (-one.quality, one.work))


def quality(row: Row) -> float:
    """What rows are ranked by: top-1, else agreement, else cosine."""
    return row.top1 if row.top1 is not None else row.agreement.value if row.agreement else row.cosine


@dataclass(frozen=True)
class Headline:
    """The most accurate recipe, and the baselines that were matched to it."""

    row: Row
    first: Row
    beside: list[Row]

    @property
    def better(self) -> bool:
        """Whether it is more often right than the unpruned model, beyond chance."""
        return self.row.top1_change is not None and self.row.top1_change.low > 0


def headline(done: Comparison) -> Headline | None:
    """What the page says first; None where nobody knows what is right."""
    own = [row for row in done.rows[1:] if row.top1 is not None and not row.beside]
    if not own:
        return None
    best = max(own, key=lambda row: (quality(row), -row.macs))
    return Headline(best, done.rows[0], [row for row in done.groups[best.groups[0]] if row.beside])


def groups(done: Comparison) -> list[tuple[str, list[Row]]]:
    """Rows by budget and blocks, in their order, with a title."""
    return [(group_title(*group), rows) for group, rows in done.groups.items()]


def group_title(budget: str, layers: str) -> str:
    where = f"blocks {layers}" if layers[:1].isdigit() else f"layers {layers}" if layers else ""
    return ", ".join(filter(None, (budget.replace("=", " "), where))) or "own budget"


def plots(done: Comparison) -> list[Plot]:
    """Quality against measured speed-up and against multiply-accumulates."""
    first, measure = done.rows[0], measure_of(done)
    costs = {"speedup": f"Measured speed-up over unpruned, {TIMES}", "gmacs": "GMACs per image"}
    return [
        Plot(series_of(done, cost), point(first, cost), title, measure, better=-1 if cost == "gmacs" else 1)
        for cost, title in costs.items()
    ]


def measure_of(done: Comparison) -> str:
    """What quality is here."""
    return (
        "Top-1 accuracy, %" if done.labelled else "Agreement with unpruned, %" if done.rows[0].agreement else f"Cosine {TIMES} 100"
    )


def series_of(done: Comparison, cost: str) -> list[Series]:
    """One line per method and list of blocks, over its budgets."""
    labels = list(dict.fromkeys(row.label for row in done.rows[1:]))
    places = list(dict.fromkeys(row.layers for row in done.rows[1:]))
    found: dict[tuple[str, str], Series] = {}
    for row in done.rows[1:]:
        name = row.label if len(places) == 1 or not row.layers else f"{row.label}, {row.layers}"
        line = found.setdefault((row.label, row.layers), Series(name, labels.index(row.label), places.index(row.layers)))
        line.points.append(point(row, cost))
    return list(found.values())


def point(row: Row, cost: str) -> Point:
    """A row with the interval of its change (top-1) or of its agreement, and the quartiles of its speed-up."""
    value, counted = 100 * quality(row), cost == "gmacs"
    upright = ends(row.agreement, 100) if row.top1 is None else around(row.top1_change, value)
    return Point(row.gmacs if counted else row.speedup.median, value, str(row), None if counted else ends(row.speedup), upright)
