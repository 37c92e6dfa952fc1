"""report(...) -> str: a comparison as one page of HTML that needs nothing from outside."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from ..look.gallery import Exhibit
from ..runs.comparison import Comparison, Row
from ..runs.intervals import Interval
from ..speed.timing import GAINS
from .plots import Point, Series, legend, plot

COLUMNS = ("Recipe", "Tokens", "Top-1 %", "Top-5 %", "Agreement %", "Cosine", "GMACs", "Images/s", "Speed-up", "Peak MB")
TIMES, DASH, MINUS = "\u00d7", "\u2013", "\u2212"
LABELLED = ("Top-1 %", "Top-5 %")


def report(done: Comparison, exhibits: list[Exhibit]) -> str:
    """The page: facts, table, plots, pictures."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    title = f"{done.model}: {len(done.rows) - 1} recipes on {len(done.images)} images"
    body = [
        f"<header><h1>{escape(title)}</h1>{facts(done)}</header>",
        f"<section><h2>Results</h2>{table(done)}{legend_of_table(done)}</section>",
        f"<section><h2>Quality against cost</h2>{plots(done)}</section>",
        pictures(exhibits, done),
        small_print(done),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}{covers(exhibits)}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{"".join(body)}</main></body></html>\n'


def facts(done: Comparison) -> str:
    """One line under the title."""
    h, w = done.image_size
    items = [
        f"data {done.data}",
        f"{h} {TIMES} {w} pixels",
        done.device,
        f"{done.threads} thread{'s' * (done.threads > 1)}",
        done.precision,
        f"batch {done.batch_size}",
        done.date[:10],
    ]
    return f'<p class="facts">{" · ".join(map(escape, items))}</p>'


def groups(done: Comparison) -> dict[tuple[str, str], list[Row]]:
    """Rows by budget and blocks, in their order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in done.rows[1:]:
        found.setdefault(row.group, []).append(row)
    return found


def group_title(group: tuple[str, str]) -> str:
    budget, layers = group
    where = f"blocks {layers}" if layers[:1].isdigit() else f"layers {layers}" if layers else ""
    return ", ".join(filter(None, (budget.replace("=", " "), where))) or "own budget"


def table(done: Comparison) -> str:
    """All rows, the best of each group marked."""
    columns = [name for name in COLUMNS if done.labelled or name not in LABELLED]
    head = "".join(f"<th scope=col>{name}</th>" for name in columns)
    best = {name: done.best(name) for name in ("top1", "top5", "agreement", "cosine", "speedup")}
    body = f"<tbody><tr class=unpruned>{cells(done.rows[0], done.labelled, best)}</tr></tbody>"
    for group, rows in groups(done).items():
        lines = "".join(f"<tr>{cells(row, done.labelled, best)}</tr>" for row in rows)
        body += f'<tbody><tr class=group><th scope=rowgroup colspan="{len(columns)}">{escape(group_title(group))}</th></tr>{lines}</tbody>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def cells(row: Row, labelled: bool, best: dict[str, set[str]]) -> str:
    """The cells of one row."""

    def cell(text: str, measure: str = "", under: str = "") -> str:
        mark = " class=best" if row.recipe in best.get(measure, ()) else ""
        return f"<td{mark}>{text}{f'<small>{under}</small>' if under else ''}</td>"

    parts = [f'<th scope=row title="{escape(row.recipe)}">{escape(row.label)}</th>', cell(" → ".join(map(str, row.tokens[-3:])))]
    if labelled:
        for name, value, move in (("top1", row.top1, row.top1_change), ("top5", row.top5, row.top5_change)):
            parts.append(cell(percent(value), name, signed(move)))
    share = row.agreement
    parts.append(cell(percent(share.value), "agreement", span(share)) if share else cell(DASH))
    parts += [cell(f"{row.cosine:.3f}", "cosine"), cell(f"{row.gmacs:.2f}"), cell(f"{row.images_per_second:.1f}")]
    parts.append(cell(f"{row.speedup.median:.2f}{TIMES}", "speedup", f"{row.speedup.low:.2f} to {row.speedup.high:.2f}"))
    return "".join([*parts, cell(f"{row.peak_memory / 1e6:.0f}")])


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}"


def signed(move: Interval | None) -> str:
    """A change in points with its interval."""
    if move is None:
        return ""
    value, low, high = (f"{100 * v:+.1f}".replace("-", MINUS) for v in (move.value, move.low, move.high))
    return f"{value} [{low}, {high}]"


def span(share: Interval) -> str:
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"


def legend_of_table(done: Comparison) -> str:
    """How to read the table."""
    text = "Marked: best of its budget and blocks. Tokens: left after each site (the last three)."
    if done.labelled:
        text += " Small print under an accuracy: change against the unpruned model in points, with its paired 95% interval."
    return f'<p class="note">{text} Under a speed-up: quartiles of the paired runs; the unpruned row is timed against itself.</p>'


def plots(done: Comparison) -> str:
    """Quality against measured speed-up and against multiply-accumulates."""
    first = done.rows[0]
    name = "Top-1 accuracy, %" if done.labelled else "Agreement with unpruned, %" if first.agreement else f"Cosine {TIMES} 100"

    def draw(title: str, cost: str) -> tuple[str, list[Series]]:
        lines = series_of(done, cost)
        return plot(lines, point(first, cost), title, name), lines

    speed, lines = draw(f"Measured speed-up over unpruned, {TIMES}", "speedup")
    work, _ = draw("GMACs per image", "gmacs")
    return f'<div class="plots"><figure>{speed}</figure><figure>{work}</figure></div>{legend(lines)}'


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
    """A row as a point of a plot."""
    quality = row.top1 if row.top1 is not None else row.agreement.value if row.agreement else row.cosine
    return Point(row.gmacs if cost == "gmacs" else row.speedup.median, 100 * quality, str(row))


def covers(exhibits: list[Exhibit]) -> str:
    """Each image once, as a style that all its thumbnails share."""
    return "".join(f'.i{index}{{background-image:url("{e.picture}")}}' for index, e in enumerate(exhibits))


def pictures(exhibits: list[Exhibit], done: Comparison) -> str:
    """For every image: the original, then per budget a grid of recipes by sites."""
    if not exhibits:
        return ""
    text = (
        "Whitened patches are dropped. Patches of one colour share a token: blue where the rest is fused, other colours where "
        "tokens are merged. Later sites show what all sites up to there have left."
    )
    parts = [f'<section><h2>Kept patches</h2><p class="note">{text}</p>']
    for index, exhibit in enumerate(exhibits):
        caption = escape(exhibit.name)
        blocks = "".join(grid(index, exhibit, group, rows) for group, rows in groups(done).items())
        parts.append(
            f"<details{' open' if index == 0 else ''}><summary>{caption}</summary>"
            f'<div class="exhibit"><div class="original i{index}" role="img" aria-label="{caption}"></div>{blocks}</div></details>'
        )
    return "".join([*parts, "</section>"])


def grid(index: int, exhibit: Exhibit, group: tuple[str, str], rows: list[Row]) -> str:
    """The thumbnails of one image under one budget."""
    lines = ""
    titles = [thumb.title for thumb in exhibit.sites.get(rows[0].recipe, [])]
    for row in rows:
        thumbs = "".join(
            f'<td><div class="thumb i{index}" title="{escape(row.recipe)}, {t.title}: {t.tokens} tokens left">'
            f'<img alt="{t.title}: {t.tokens} tokens left" src="{t.overlay}"></div></td>'
            for t in exhibit.sites.get(row.recipe, [])
        )
        lines += f"<tr><th scope=row>{escape(row.label)}</th>{thumbs}</tr>"
    head = "".join(f"<th scope=col>{title}</th>" for title in titles)
    return f'<table class="grid"><caption>{escape(group_title(group))}</caption><tr><td></td>{head}</tr>{lines}</table>'


def small_print(done: Comparison) -> str:
    """How the numbers were made, and what was left out."""
    items = [
        done.interval_method,
        f"Speed: unpruned and pruned model in turn on the same batch of {done.timed_batch}, median and quartiles of the ratio.",
        *([GAINS] if done.device.startswith("cpu") else []),
        f"Peak memory: {done.memory_method}.",
        "GMACs: multiply-accumulates per image, attention and the score's own included.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in done.versions.items()),
        f"Data fingerprint {done.data_fingerprint}, seed {done.seed}, {done.date}.",
        *done.notes,
    ]
    if done.skipped:
        names = "; ".join(f"{name} ({reason})" for name, reason in done.skipped)
        items.insert(0, f"{len(done.skipped)} unreadable images were skipped: {names}.")
    return f"<footer><h2>How it was measured</h2><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul></footer>"
