"""Tables of docs/results.md from a finished `sparsight compare`: accuracy with paired intervals, budget by budget.

python benchmarks/accuracy_table.py runs/caltech > table.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsight.runs.comparison import Comparison, Row
from sparsight.runs.intervals import Interval


def points(interval: Interval | None) -> str:
    """A difference of shares in percentage points with its interval, bold where the interval leaves out zero."""
    if interval is None:
        return ""
    text = f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


def line(done: Comparison, row: Row, against: Row | None) -> str:
    beside = points(done.difference(row.recipe, against.recipe)) if against is not None and against is not row else ""
    agreement = "" if row.agreement is None else f"{100 * row.agreement.value:.1f}"
    name = row.label
    return (
        f"| `{name}` | {100 * (row.top1 or 0):.1f} | {points(row.top1_change)} | {beside} | {agreement} | {row.cosine:.3f} "
        f"| {row.gmacs:.2f} |"
    )


def tables(done: Comparison) -> str:
    """One table per budget and schedule, best accuracy first."""
    whole = done.rows[0]
    out = [f"Unpruned: top-1 {100 * (whole.top1 or 0):.1f}%, top-5 {100 * (whole.top5 or 0):.1f}%, {whole.gmacs:.2f} GMACs.", ""]
    for group, members in done.groups.items():
        rows = sorted(members, key=lambda row: -(row.top1 or 0))
        against = next((row for row in rows if row.recipe.startswith("random")), None)
        out += [f"### {group[0]}, blocks {group[1]}", ""]
        out += ["| method | top-1 % | change to unpruned, points | difference to random, points | agreement % | cosine | GMACs |"]
        out += ["| --- | --- | --- | --- | --- | --- | --- |", *(line(done, row, against) for row in rows), ""]
    return "\n".join(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder with results.json")
    print(tables(Comparison.load(parser.parse_args().results)))
