"""bench_report(...) -> str: latency and throughput as one page, with a table and plots for each engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .page import TIMES, counted, render
from .plots import Plot, Point, Series, ends

if TYPE_CHECKING:
    from ..speed.bench_result import Bench, BenchRow, Timing


@dataclass(frozen=True)
class Engine:
    """One precision and backend, its unpruned row first."""

    precision: str
    backend: str
    rows: list[BenchRow]
    plots: list[Plot]


def bench_report(done: Bench) -> str:
    recipes = len({row.recipe for row in done.rows}) - 1
    h, w = done.image_size
    return render(
        "bench.html",
        done=done,
        title=f"{done.model}: speed under {counted(recipes, 'recipe')}",
        facts=(f"{h} {TIMES} {w} pixels", done.device, counted(done.threads, "thread"), done.date[:10]),
        engines=[engine(done, *names) for names in done.engines],
        heads=heads(done),
    )


def heads(done: Bench) -> list[str]:
    """Of the columns of a table."""
    timed = [head for size in done.batches for head in (f"Batch {size}: ms", f"Speed-up {TIMES}", "Share")]
    return ["Recipe", "Tokens", "GMACs", f"MACs {TIMES}", *timed, "Sites' share %", "Peak MB"]


def engine(done: Bench, precision: str, backend: str) -> Engine:
    """The rows of an engine; plots for the smallest and the largest batch, where there is anything to compare."""
    rows = [row for row in done.rows if row.engine == (precision, backend)]
    places = {done.batches[place]: place for place in (0, -1)} if len(rows) > 1 else {}
    return Engine(precision, backend, rows, [plot(rows, place, size) for size, place in places.items()])


def plot(rows: list[BenchRow], place: int, size: int) -> Plot:
    """Speed-up against the MAC ratio; on the dotted line the whole ratio is realised."""
    series = [Series(row.recipe, look, points=[timed(row, row.timings[place])]) for look, row in enumerate(rows[1:])]
    top = max(row.mac_ratio for row in rows)
    counted = Series("as counted", 7, 1, [Point(1, 1, "as counted"), Point(top, top, "as counted")])
    base = timed(rows[0], rows[0].timings[place])
    return Plot([*series, counted], base, f"MACs: unpruned over pruned, {TIMES}", f"Speed-up at batch {size}, {TIMES}")


def timed(row: BenchRow, timing: Timing) -> Point:
    """A row at one batch size, with quartiles."""
    return Point(row.mac_ratio, timing.speedup.median, f"{row.recipe}, {timing}", upright=ends(timing.speedup))
