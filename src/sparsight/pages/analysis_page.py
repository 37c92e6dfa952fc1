"""analysis_page(...) -> str: an analysis of a model's blocks as one page: one section per question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from .page import TIMES, counted, fitting, render, signed

if TYPE_CHECKING:
    from ..look.analysis import Analysis

Line = tuple[str, list[str]]
"""The name and the cells of a table's row."""


@dataclass(frozen=True)
class Figure:
    """A picture on a light and on a dark page, as data URIs; width: in pixels of the page, where there is room."""

    light: str
    dark: str
    width: int


def analysis_page(done: Analysis, figures: Mapping[str, Figure]) -> str:
    """The page. figures: by the names of their files, those of heat maps beginning with "scores"."""
    sheets = [name for name in figures if name.startswith("scores")]
    room = fitting(len(figures[name].light) + len(figures[name].dark) for name in sheets)
    grid, patch = (f"{a:g} {TIMES} {b:g}" for a, b in (done.grid, done.patch))
    return render(
        "analysis.html",
        done=done,
        title=f"{done.model}: {counted(len(done.layers), 'block')} on {done.images} images",
        facts=(f"data {done.data}", f"{grid} patches of {patch} pixels", done.blocks, done.device, done.date[:10]),
        figures=figures,
        sheets=sheets[:room],
        others=sheets[room:],
        reach=reach(done),
        agreement=agreement(done),
        ranks=ranks(done),
    )


def reach(done: Analysis) -> list[Line]:
    """Distance, entropy and their correlation, block by block."""
    columns = []
    for block in done.layers:
        entropies, distances = done.pairs_of_heads(block)
        own = [head.correlation for head in done.heads if head.block == block and head.correlation is not None]
        columns.append(
            (f"{fmean(distances):.1f}", f"{fmean(entropies):.2f}", signed(done.within(block)), signed(fmean(own) if own else None))
        )
    names = ("mean distance, pixels", f"mean {done.order_name} entropy, nats", "r over heads", "r over patches, mean of heads")
    return [(name, list(cells)) for name, cells in zip(names, zip(*columns), strict=True)]


def agreement(done: Analysis) -> list[Line]:
    """Shared tokens of every pair of recipes, block by block."""
    lines = []
    for first, second in done.different():
        found = {a.block: a for a in done.agreed(first, second)}
        cells = [f"{100 * found[block].overlap:.0f}" if block in found else "" for block in done.layers]
        lines.append((f"{first} and {second}", [*cells, *(f"{100 * value:.0f}" for value in done.shared(first, second))]))
    return lines


def ranks(done: Analysis) -> list[Line]:
    """Tokens left and their effective rank, means over the blocks."""
    lines = []
    for recipe in done.recipes:
        _, rank, random, _ = means = done.means(recipe)
        lines.append((recipe, [*(f"{value:.1f}" for value in means), signed(100 * (rank / random - 1), 1)]))
    return lines
