"""The figures of an analysis, drawn by matplotlib from the result alone: as PNG files on white, and for dark pages."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from PIL import Image

from ..pages.analysis_page import Figure
from ..pages.page import picture_uri
from ..pages.plots import COLOURS as ALL_COLOURS
from .analysis import Agreement, Analysis, named, signed

COLOURS = ALL_COLOURS[:-1]
KEPT = COLOURS[0]
DPI = 150


@dataclass(frozen=True)
class Palette:
    """Colours of text, of what is less important, of grid lines, of pruned patches, and of the paper; the blocks' colours begin at
    `first` of viridis, so that none of them is that of the paper."""

    ink: str
    quiet: str
    line: str
    pruned: str
    paper: str
    first: float = 0.0

    def style(self) -> dict[str, Any]:
        """The settings of matplotlib that draw so."""
        quiet = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), self.quiet)
        ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), self.ink)
        paper = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.paper)
        return STYLE | quiet | ink | paper | {"grid.color": self.line}


LIGHT = Palette("#1c1c1e", "#5f6368", "#e2e3e6", "#c9ccd1", "#ffffff")
DARK = Palette("#e9e9ec", "#a3a7ae", "#33373d", "#4b5057", "#16181b", 0.3)
"""As `pages/style.css` has them."""

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def figures(done: Analysis) -> tuple[dict[str, bytes], dict[str, Figure]]:
    """The PNG files by name, and what the page shows of them."""
    drawings = {"entropy.png": entropy, "distance.png": distance, "rank.png": rank}
    if done.different():
        drawings["agreement.png"] = agreement
    files, shown = {}, {}
    for name, draw in drawings.items():
        light, dark = (png(draw, done, palette) for palette in (LIGHT, DARK))
        files[name], shown[name] = light, Figure(smaller(light), smaller(dark), page_width(light))
    return files, shown


def smaller(content: bytes) -> str:
    """A PNG file as a page has it, without loss in a third of the bytes."""
    with Image.open(io.BytesIO(content)) as picture:
        return picture_uri(picture, "webp", lossless=True)


def page_width(content: bytes) -> int:
    """Pixels of a page that a PNG file is wide at its own resolution."""
    with Image.open(io.BytesIO(content)) as picture:
        return round(picture.width * 96 / DPI)


def png(draw: Any, done: Analysis, palette: Palette) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(palette.style()):
        draw(done, palette).savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def sheet(width: float, height: float) -> Any:
    """An empty figure, without the global state of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def entropy(done: Analysis, palette: Palette) -> Any:
    """One panel per order, in it one histogram per block: the patches with the lowest entropy of their image in colour."""
    figure = sheet(max(4.5, 2.6 * len(done.orders)), 1.4 + 0.42 * len(done.layers))
    panels = figure.subplots(1, len(done.orders), sharey=True, squeeze=False)[0]
    edges = np.linspace(0, done.top, len(done.histograms[0].kept) + 1)
    for panel, order in zip(panels, done.orders, strict=True):
        found = {item.block: item for item in done.histograms if item.order == order}
        for row, block in enumerate(done.layers):
            kept, pruned = np.array(found[block].kept), np.array(found[block].pruned)
            height = 0.92 / max(1, (kept + pruned).max())
            panel.stairs(row - kept * height, edges, baseline=row, fill=True, color=KEPT, linewidth=0)
            panel.stairs(
                row - (kept + pruned) * height, edges, baseline=row - kept * height, fill=True, color=palette.pruned, linewidth=0
            )
            panel.axhline(row, color=palette.quiet, linewidth=0.5)
        panel.axvline(done.top, color=palette.quiet, linewidth=0.7, linestyle=":")
        panel.set(title=named(order), xlabel="entropy (nats)", xlim=(0, done.top * 1.02), ylim=(len(done.layers) - 0.9, -1.05))
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
    panels[0].set_yticks(range(len(done.layers)), [str(block) for block in done.layers])
    panels[0].set_ylabel("block")
    h, w = done.grid
    entries = (f"the {done.kept} of {h * w} patches of each image with the lowest entropy", KEPT), ("the others", palette.pruned)
    legend(figure, entries)
    return figure


def legend(figure: Any, entries: Any) -> None:
    """Coloured patches with their names, above the panels."""
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=colour, label=text) for text, colour in entries],
        loc="outside upper left",
        ncols=len(entries) if figure.get_figwidth() > 7 else 1,
    )


def distance(done: Analysis, palette: Palette) -> Any:
    """Distance and entropy of every head over the depth, and one against the other."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    figure = sheet(11.5, 3.7)
    left, middle, right = figure.subplots(1, 3)
    entropies, distances = done.pairs_of_heads()
    blocks = [head.block for head in done.heads]
    over_depth(left, done, distances, "attention distance (pixels)")
    even(left, done.uniform, palette)
    left.set_ylim(0, max(done.uniform, *distances) * 1.09)
    left.set_title("dots: heads, line: their mean")
    over_depth(middle, done, entropies, f"{named(done.order)} entropy (nats)")
    even(middle, done.top, palette)
    middle.set_ylim(min(0.0, *entropies), done.top * 1.09)
    colours = ListedColormap(colormaps["viridis"](np.linspace(palette.first, 1, 256)))
    dots = right.scatter(entropies, distances, c=blocks, cmap=colours, s=22, linewidths=0, alpha=0.9)
    figure.colorbar(dots, ax=right, label="block", pad=0.02).outline.set_visible(False)
    right.set(xlabel=f"{named(done.order)} entropy (nats)", ylabel="attention distance (pixels)")
    right.set_title(f"r = {signed(done.correlation)} over heads, {signed(done.correlation_of_blocks)} over blocks")
    return figure


def even(axes: Any, value: float, palette: Palette) -> None:
    """A dotted line where attention spread evenly would be."""
    axes.axhline(value, color=palette.quiet, linewidth=0.8, linestyle=":")
    place = {"xy": (1, value), "xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate("even attention", **place, ha="right", color=palette.quiet, fontsize=8)


def over_depth(axes: Any, done: Analysis, values: list[float], title: str) -> None:
    rows = np.array([done.layers.index(head.block) for head in done.heads])
    means = [float(np.mean(np.array(values)[rows == row])) for row in range(len(done.layers))]
    axes.plot(range(len(means)), means, color=KEPT, linewidth=1.6, label="mean")
    axes.scatter(rows, values, color=KEPT, s=16, alpha=0.5, linewidths=0, label="head")
    blocks_below(axes, done)
    axes.set_ylabel(title)
    axes.set_axisbelow(True)


def blocks_below(axes: Any, done: Analysis) -> None:
    """The blocks as the ticks of the horizontal axis."""
    axes.set_xticks(range(len(done.layers)), [str(block) for block in done.layers])
    axes.set_xlabel("block")
    axes.grid(axis="y", linewidth=0.6)


def agreement(done: Analysis, palette: Palette) -> Any:
    """One matrix per block: shared tokens of every pair of recipes in percent of the smaller set, coloured by how far from chance."""
    names = list(dict.fromkeys(a.first for a in done.agreements))
    legends = [folded(name) for name in names]
    columns = min(6 if len(names) < 5 else 4, len(done.layers))
    rows, side = math.ceil(len(done.layers) / columns), max(1.5, 0.4 * len(names))
    figure = sheet(columns * side + 1.2, rows * (side + 0.3) + 0.2 * sum(legend.count("\n") + 1 for legend in legends) + 0.2)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(done.layers) :]:
        panel.set_visible(False)
    for panel, block in zip(panels.flat, done.layers):
        found = [a for a in done.agreements if a.block == block]
        percent, colour = (np.full((len(names), len(names)), np.nan) for _ in range(2))
        for a in found:
            i, j = names.index(a.first), names.index(a.second)
            percent[i, j] = percent[j, i] = 100 * a.overlap
            colour[i, j] = colour[j, i] = beyond_chance(a)
        image = panel.imshow(colour, cmap="RdBu", vmin=-1, vmax=1)
        write_cells(panel, percent, colour)
        panel.set_title(f"block {block}")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_ticks(range(len(names)), [str(number + 1) for number in range(len(names))])
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panels, shrink=0.85, pad=0.02, aspect=25, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["none shared", "as by chance", "the same"])
    bar.outline.set_visible(False)
    numbered(figure, legends)
    return figure


def beyond_chance(pair: Agreement) -> float:
    """Agreement from -1 (nothing shared) over 0 (as two random sets) to 1 (the same)."""
    beyond = pair.overlap - pair.chance
    room = 1 - pair.chance if beyond > 0 else pair.chance
    return beyond / room if room > 1e-9 else 0.0


def write_cells(panel: Any, percent: Any, colour: Any) -> None:
    for (i, j), value in np.ndenumerate(percent):
        if not np.isnan(value):
            ink = "white" if abs(colour[i, j]) > 0.6 else LIGHT.ink
            panel.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)


def numbered(figure: Any, names: list[str]) -> None:
    """What the numbers beside the matrices stand for."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", label=f"{number + 1}  {name}") for number, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns_of(names), handlelength=0, handletextpad=0)


LONGEST = 80
"""Characters of a recipe in one line of a legend."""


def folded(name: str) -> str:
    return fill(name.replace(",", ", "), LONGEST, break_on_hyphens=False).replace(", ", ",")


def columns_of(names: list[str], most: int = 2) -> int:
    """Columns of a legend; long names stand below each other."""
    return most if max(map(len, names)) < LONGEST // most else 1


def rank(done: Analysis, palette: Palette) -> Any:
    """Effective rank of what is left over the depth, and the same as a share of what as many random tokens have."""
    figure = sheet(10.5, 3.7 + 0.2 * math.ceil(len(done.recipes) / columns_of(done.recipes, 3)))
    left, right = figure.subplots(1, 2)
    row_of = done.layers.index
    full = {row.block: row.unpruned for row in done.left}
    left.plot([row_of(block) for block in full], list(full.values()), color=palette.ink, linewidth=1.6, label="all tokens")
    for index, recipe in enumerate(done.recipes):
        rows = [row for row in done.left if row.recipe == recipe]
        spots = [row_of(row.block) for row in rows]
        look = {"color": COLOURS[index % len(COLOURS)], "marker": "osD^vPX"[index % 7], "markersize": 4, "linewidth": 1.5}
        left.plot(spots, [row.rank for row in rows], label=folded(recipe), **look)
        right.plot(spots, [100 * (row.rank / row.random - 1) for row in rows], **look)
    quiet = {"color": palette.quiet, "linewidth": 1.2, "linestyle": "--"}
    random: dict[float, dict[int, float]] = {}
    for row in done.left:
        random.setdefault(round(row.tokens, 2), {})[row_of(row.block)] = row.random
    for number, line in enumerate(random.values()):
        left.plot(list(line), list(line.values()), **quiet, label=None if number else "as many at random")
    right.axhline(0, **quiet)
    left.set(ylabel="effective rank", title="of the tokens that are left")
    right.set(ylabel="difference (%)", title="against as many tokens at random")
    for axes in (left, right):
        blocks_below(axes, done)
    figure.legend(loc="outside lower center", ncols=columns_of(done.recipes, 3))
    return figure
