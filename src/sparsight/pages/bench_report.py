"""bench_report(...) -> str: latency and throughput as one page of HTML that needs nothing from outside."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from ..runs.comparison import UNPRUNED
from ..speed.bench_result import Bench, BenchRow, Timing
from ..speed.timing import GAINS, MOMENT
from .plots import Point, Series, legend, plot

TIMES, DASH = "\u00d7", "\u2013"


def bench_report(done: Bench) -> str:
    """The page: facts, and for every engine a table and a picture."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    recipes = len({row.recipe for row in done.rows}) - 1
    title = f"{done.model}: speed under {recipes} recipe{'s' * (recipes != 1)}"
    h, w = done.image_size
    facts = " · ".join((f"{h} {TIMES} {w} pixels", done.device, f"{done.threads} threads", done.date[:10]))
    body = [f'<header><h1>{escape(title)}</h1><p class="facts">{escape(facts)}</p></header>']
    body += [engine(done, *names) for names in done.engines]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}</style>'
    )
    page = "".join([*body, small_print(done)])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{page}</main></body></html>\n'


def engine(done: Bench, precision: str, backend: str) -> str:
    """One precision and backend."""
    rows = [row for row in done.rows if row.engine == (precision, backend)]
    return f"<section><h2>{escape(backend)}, {escape(precision)}</h2>{table(done, rows)}{pictures(done, rows)}</section>"


def table(done: Bench, rows: list[BenchRow]) -> str:
    """One line per recipe; three columns per batch size."""
    heads = ["Recipe", "Tokens", "GMACs", f"MACs {TIMES}"]
    for size in done.batches:
        heads += [f"Batch {size}: ms", f"Speed-up {TIMES}", "Share"]
    heads += ["Sites' share %", "Peak MB"]
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    body = "".join(
        f"<tr{' class=unpruned' if row.recipe == UNPRUNED else ''}><th scope=row>{escape(row.recipe)}</th>{''.join(cells(row))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cells(row: BenchRow) -> list[str]:
    found = ["/".join(map(str, row.tokens)) or DASH, f"{row.macs / 1e9:.2f}", f"{row.mac_ratio:.2f}"]
    for timing in row.timings:
        found += timed(row, timing)
    found.append(DASH if row.site_share is None else f"{100 * row.site_share:.0f}")
    found.append(DASH if row.peak_memory is None else f"{row.peak_memory / 1e6:.0f}")
    return [f"<td>{text}</td>" for text in found]


def timed(row: BenchRow, timing: Timing) -> list[str]:
    """Milliseconds, speed-up with quartiles, and its share of the MAC ratio."""
    gain = timing.speedup
    return [
        f"{1e3 * timing.seconds:.1f}<small>p95 {1e3 * timing.p95:.1f}</small>",
        f"{gain.median:.2f}<small>{gain.low:.2f} to {gain.high:.2f}</small>",
        f"{row.share(timing):.2f}",
    ]


def pictures(done: Bench, rows: list[BenchRow]) -> str:
    """Speed-up against the MAC ratio: the smallest batch and the largest; on the dotted line the whole ratio is realised."""
    if len(rows) < 2:
        return ""
    figures, series = [], []
    for place, size in dict.fromkeys(((0, done.batches[0]), (len(done.batches) - 1, done.batches[-1]))):
        series = [
            Series(row.recipe, look, points=[Point(row.mac_ratio, row.timings[place].speedup.median, str(row.timings[place]))])
            for look, row in enumerate(rows[1:])
        ]
        ends = [
            Point(1, 1, "as counted"),
            Point(max(row.mac_ratio for row in rows), max(row.mac_ratio for row in rows), "as counted"),
        ]
        line = Series("as counted", 7, 1, ends)
        origin = Point(1, rows[0].timings[place].speedup.median, str(rows[0]))
        title = f"Speed-up at batch {size}, {TIMES}"
        figures.append(f"<figure>{plot([*series, line], origin, f'MACs: unpruned over pruned, {TIMES}', title)}</figure>")
    return f'<div class="plots">{"".join(figures)}</div>{legend([*series, Series("as counted", 7, 1)])}'


def small_print(done: Bench) -> str:
    """How the numbers were made."""
    items = [
        f"Speed-ups: every pruned forward is timed right beside an unpruned one in the same engine, the order changing, after up to {MOMENT:g} seconds of each "
        f"to warm up; {done.seconds:g} s per batch size. Medians, quartiles under them; the unpruned rows are against themselves and show the noise.",
        *([GAINS] if done.device.startswith("cpu") else []),
        "Share: the speed-up as a share of the MAC ratio. Sites' share: part of the pruned blocks' time that scoring, choosing and moving "
        "tokens takes, at the largest batch.",
        f"Peak memory: {done.memory_method}; at the largest batch.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in done.versions.items()) + f". {done.date}.",
        *done.notes,
    ]
    return f"<footer><h2>How it was measured</h2><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul></footer>"
