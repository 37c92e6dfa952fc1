"""page(...) -> str: an analysis as one page of HTML that needs nothing from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from statistics import fmean

from PIL import Image

from ..look.analysis import Analysis, named, signed
from ..look.patches import data_uri

TIMES = "\u00d7"
MAPS = "scores"
"""How the names of the heat maps begin."""
STYLE = "figure img{width:100%;height:auto;display:block;border-radius:6px}figure+figure{margin-top:18px}"


def page(done: Analysis, drawn: Mapping[str, bytes]) -> str:
    """The page: what was looked at, one section per question, how it was measured. drawn: the figures' PNG files by name."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    title = f"{done.model}: {len(done.layers)} blocks on {done.images} images"
    maps = [name for name in drawn if name.startswith(MAPS)]
    body = [
        f"<header><h1>{escape(title)}</h1>{facts(done)}</header>",
        section("Scores", SCORES, *(picture(drawn, name, f"Scores of {done.maps[i]}") for i, name in enumerate(maps)))
        if maps
        else "",
        section("Entropy of the attention", ENTROPY, picture(drawn, "entropy.png", "Histograms of the row entropy")),
        section("Reach of the attention", REACH, picture(drawn, "distance.png", "Attention distance and entropy"), reach(done)),
        agreement(done, drawn),
        section("Effective rank of what is left", RANK, picture(drawn, "rank.png", "Effective rank"), ranks(done)),
        small_print(done),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}{STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{"".join(body)}</main></body></html>\n'


SCORES = (
    "What every recipe thinks of all patches in each block, before anything is pruned. Colours run from the lowest to the highest score of "
    "each map, two percent at either end cut; between patches they are interpolated."
)
ENTROPY = (
    "How evenly each patch spreads its attention over the patches: 0 if all goes to one, the dotted line if it is even. Mean over heads. "
    "Methods that prune by entropy keep the patches on the left."
)
REACH = (
    "Distance in pixels between a patch and those it attends to, weighted by attention, mean over patches and images. Attention on class and "
    "register tokens is left out. Where r is near 1, heads that look far also spread their attention."
)
AGREEMENT = (
    "Tokens that both recipes of a pair keep, in percent of the smaller set, mean over images. Colours: blue where they share more than two "
    "random sets of these sizes would, red where less; the last column of the table is what random sets share."
)
RANK = (
    "Effective rank (exponential of the entropy of the singular values) of the tokens that a recipe leaves of all tokens in a block: how many "
    "directions they span. Dashed: as many tokens drawn at random."
)


def section(title: str, text: str, *parts: str) -> str:
    return f'<section><h2>{title}</h2><p class="note">{text}</p>{"".join(parts)}</section>'


def picture(drawn: Mapping[str, bytes], name: str, text: str) -> str:
    """A figure inside the page."""
    if name.startswith(MAPS):
        with Image.open(io.BytesIO(drawn[name])) as sheet:
            data = data_uri(sheet.convert("RGB"), "JPEG")  # a tenth of the bytes; the file beside the page has all
    else:
        data = f"data:image/png;base64,{base64.b64encode(drawn[name]).decode()}"
    return f'<figure><img alt="{escape(text)}" src="{data}"></figure>'


def facts(done: Analysis) -> str:
    """One line under the title."""
    grid, patch = (f"{a:g} {TIMES} {b:g}" for a, b in (done.grid, done.patch))
    items = [
        f"data {done.data}",
        f"{grid} patches of {patch} pixels",
        done.blocks,
        done.device,
        done.date[:10],
    ]
    return f'<p class="facts">{" · ".join(map(escape, items))}</p>'


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table whose first column names the rows."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def reach(done: Analysis) -> str:
    """Distance, entropy and their correlation, block by block."""
    lines: list[list[str]] = [
        ["mean distance, pixels"],
        [f"mean {named(done.order)} entropy, nats"],
        ["r over heads"],
        ["r over patches, mean of heads"],
    ]
    for block in done.layers:
        entropies, distances = done.pairs_of_heads(block)
        own = [head.correlation for head in done.heads if head.block == block and head.correlation is not None]
        found = (
            f"{fmean(distances):.1f}",
            f"{fmean(entropies):.2f}",
            signed(done.within(block)),
            signed(fmean(own) if own else None),
        )
        for line, cell in zip(lines, found, strict=True):
            line.append(cell)
    return table(["block", *map(str, done.layers)], lines)


def agreement(done: Analysis, drawn: Mapping[str, bytes]) -> str:
    """The matrices, and the pairs over the blocks as a table."""
    if "agreement.png" not in drawn:
        return ""
    rows = []
    for first, second in done.different():
        found = {a.block: a for a in done.agreed(first, second)}
        cells = [f"{100 * found[block].overlap:.0f}" if block in found else "" for block in done.layers]
        means = [fmean(getattr(a, name) for a in found.values()) for name in ("overlap", "chance")]
        rows.append([f"{first} and {second}", *cells, *(f"{100 * value:.0f}" for value in means)])
    shown = table(["shared tokens, % in block", *map(str, done.layers), "mean", "chance"], rows)
    return section("Do recipes agree?", AGREEMENT, picture(drawn, "agreement.png", "Agreement of kept sets"), shown)


def ranks(done: Analysis) -> str:
    """Means over the blocks."""
    rows = []
    for recipe in done.recipes:
        found = [row for row in done.left if row.recipe == recipe]
        tokens, rank, random, full = (
            fmean(getattr(row, name) for row in found) for name in ("tokens", "rank", "random", "unpruned")
        )
        rows.append(
            [
                recipe,
                f"{tokens:.1f}",
                f"{rank:.1f}",
                f"{random:.1f}",
                f"{full:.1f}",
                f"{100 * (rank / random - 1):+.1f}".replace("-", "\u2212"),
            ]
        )
    return table(["mean over blocks", "tokens", "effective rank", "as many at random", "all tokens", "against random, %"], rows)


def small_print(done: Analysis) -> str:
    """How the numbers were made, and what was left out."""
    items = [
        "The model is not pruned: in every block each recipe is asked what it would keep of all tokens, by its own budget.",
        f"Entropy: of the softmax over the patch keys, natural logarithm. {named(done.order)} entropy goes with the distance.",
        "Distance: between centres of patches, in pixels of the model's input.",
        "r: Pearson's correlation. Over patches: of all images, head by head.",
        "Numbers behind the figures: entropy.csv, heads.csv, agreement.csv, rank.csv, scores.csv and analysis.json beside this page.",
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in done.versions.items())
        + f"; seed {done.seed}; {done.date}.",
        *done.notes,
    ]
    if done.skipped:
        names = "; ".join(f"{name} ({reason})" for name, reason in done.skipped)
        items.insert(0, f"{len(done.skipped)} unreadable images were skipped: {names}.")
    return f"<footer><h2>How it was measured</h2><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul></footer>"
