"""report(...) -> str: a comparison as one page: table, quality against cost, kept patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .page import TIMES, counted, render
from .plots import Plot, Point, Series

if TYPE_CHECKING:
    from ..look.gallery import Exhibit
    from ..runs.comparison import Comparison, Row

HEADS = ("Recipe", "Tokens", "Top-1 %", "Top-5 %", "Agreement %", "Cosine", "GMACs", "Images/s", "Speed-up", "Peak MB")
LABELLED = ("Top-1 %", "Top-5 %")
MARKED = ("top1", "top5", "agreement", "cosine", "speedup")


def report(done: Comparison, exhibits: Sequence[Exhibit]) -> str:
    """The page, with every row of the comparison and the pictures of `gallery`."""
    h, w = done.image_size
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
        exhibits=exhibits,
    )


def groups(done: Comparison) -> list[tuple[str, list[Row]]]:
    """Rows by budget and blocks, in their order, with a title."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in done.rows[1:]:
        found.setdefault(row.group, []).append(row)
    return [(group_title(*group), rows) for group, rows in found.items()]


def group_title(budget: str, layers: str) -> str:
    where = f"blocks {layers}" if layers[:1].isdigit() else f"layers {layers}" if layers else ""
    return ", ".join(filter(None, (budget.replace("=", " "), where))) or "own budget"


def plots(done: Comparison) -> list[Plot]:
    """Quality against measured speed-up and against multiply-accumulates."""
    first = done.rows[0]
    quality = "Top-1 accuracy, %" if done.labelled else "Agreement with unpruned, %" if first.agreement else f"Cosine {TIMES} 100"
    costs = {"speedup": f"Measured speed-up over unpruned, {TIMES}", "gmacs": "GMACs per image"}
    return [Plot(series_of(done, cost), point(first, cost), title, quality) for cost, title in costs.items()]


def series_of(done: Comparison, cost: str) -> list[Series]:
    """One line per method and list of blocks, over its budgets."""
    labels = list(dict.fromkeys(row.label for row in done.rows[1:]))
    places = list(dict.fromkeys(row.layers for row in done.rows[1:]))
    found: dict[tuple[str, str], Series] = {}
    for row in done.rows[1:]:
        name = row.label if len(places) == 1 else f"{row.label}, {row.layers}"
        line = found.setdefault((row.label, row.layers), Series(name, labels.index(row.label), places.index(row.layers)))
        line.points.append(point(row, cost))
    return list(found.values())


def point(row: Row, cost: str) -> Point:
    quality = row.top1 if row.top1 is not None else row.agreement.value if row.agreement else row.cosine
    return Point(row.gmacs if cost == "gmacs" else row.speedup.median, 100 * quality, str(row))
