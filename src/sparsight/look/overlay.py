"""A picture with what a recipe made of its patches: its score as colours, the dropped ones white, the merged ones in one colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .patches import WHITE, Look, Pixels, tint
from .sheet import INK, Ink, font

HEAT = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
"""Six stops of the colour map inferno: even steps of lightness, readable without colour vision."""
EMPTY = (245, 245, 247)


def colour_bar(width: int, ends: tuple[str, str], ink: Ink, paper: Ink, size: int) -> Image.Image:
    """The colours of heat maps and what their ends mean."""
    bar = Image.new("RGB", (width, 18 + 2 * size), paper)
    bar.paste(Image.fromarray(np.repeat(inferno(np.linspace(0, 1, width))[None], 14, axis=0)))
    pen = ImageDraw.Draw(bar)
    pen.text((0, 18), ends[0], ink, font(size))
    pen.text((width, 18), ends[1], ink, font(size), anchor="ra")
    return bar


def heat_map(image: Image.Image, site: Look) -> Image.Image:
    """The score over the greyed image; patches without a token are white."""
    if site.score is None:
        return Image.new("RGB", image.size, EMPTY)
    cells = np.concatenate([inferno(level(site.score)), np.full((*site.score.shape, 1), 205, np.uint8)], axis=-1)
    cells[np.isnan(site.score)] = (*WHITE[:3], 235)
    return over(image.convert("L").convert("RGB"), cells)


def level(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """A score in [0, 1]. Two percent at either end are cut so that one outlier does not paint everything else in one colour."""
    low, high = np.nanpercentile(score, (2, 98))
    found: NDArray[np.float64] = np.clip((np.nan_to_num(score) - low) / max(high - low, 1e-30), 0, 1)
    return found


def kept(image: Image.Image, site: Look) -> Image.Image:
    """The image with dropped patches whitened, shared slots coloured, and an outline around each shared slot. A picture made smaller is
    shown smaller."""
    if site.smaller:
        share = (site.tokens / site.owner.size) ** 0.5
        small = image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), Image.Resampling.BICUBIC)
        drawn = Image.new("RGB", image.size, EMPTY)
        drawn.paste(small, ((image.width - small.width) // 2, (image.height - small.height) // 2))
        return drawn
    drawn = over(image, tint(site))
    shared = np.isin(site.owner, site.shared)
    pen = ImageDraw.Draw(drawn)
    rows, columns = site.owner.shape
    ys, xs = (np.linspace(0, size, count + 1).round().astype(int) for size, count in ((image.height, rows), (image.width, columns)))
    for r in range(rows):
        for c in range(columns):
            if c + 1 < columns and site.owner[r, c] != site.owner[r, c + 1] and (shared[r, c] or shared[r, c + 1]):
                pen.line((xs[c + 1], ys[r], xs[c + 1], ys[r + 1]), INK)
            if r + 1 < rows and site.owner[r, c] != site.owner[r + 1, c] and (shared[r, c] or shared[r + 1, c]):
                pen.line((xs[c], ys[r + 1], xs[c + 1], ys[r + 1]), INK)
    return drawn


def over(image: Image.Image, cells: Pixels) -> Image.Image:
    """One RGBA pixel per patch laid over the image."""
    layer = Image.fromarray(cells, "RGBA").resize(image.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def inferno(level: np.ndarray) -> Pixels:
    """Numbers in [0, 1] as colours."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(level, stops, [colour[i] for colour in HEAT]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
