"""show(...) -> Shown: one image's score and kept patches, site by site, as a PNG."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from ..data.demo_sets import DEMO, open_demo
from ..data.images import Skipped, load_image
from ..data.reading import Transform, readable
from ..errors import PruneError
from ..load.models import Loaded, at_size, open_model
from ..prune import family_of, plan_sites, resolve
from ..recipe import Recipe
from ..runs.store import write
from .patches import FUSED, GROUPS, WHITE, Look, Pixels, look, pictures, tint

Ink = str | tuple[int, int, int]
INK, QUIET, PAPER = (28, 28, 30), (110, 110, 115), (255, 255, 255)
MARGIN, GAP, LINE = 28, 18, 26
COLUMNS = 4
"""Sites beside each other before a new band of pictures begins."""
LEAST_SIDE = 240

HEAT = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
"""Six stops of the colour map inferno: even steps of lightness, readable without colour vision."""


@dataclass(frozen=True)
class Shown:
    """What `show` drew: tokens before and after each site."""

    path: str
    model: str
    recipe: str
    patches: int
    layers: list[int]
    tokens: list[int]

    def __str__(self) -> str:
        steps = ", ".join(f"{'input' if b < 0 else f'block {b}'}: {n}" for b, n in zip(self.layers, self.tokens, strict=True))
        return f"{self.path}: {self.recipe} on {self.model}, {self.patches} patches; {steps}"


def show(
    image: str | Path,
    model: str | Loaded | nn.Module = "demo",
    recipe: str | Recipe = "col_ln",
    out: str | Path = "kept.png",
    *,
    transform: Transform | None = None,
) -> Shown:
    """Draw the heat map of the score and the kept patches of an image at each site, in the model's own crop.

    image: a file, or a data set such as "demo:small", whose first picture it is. model, transform: see `open_model`. Later sites show what all sites up to there have left. Raises PruneError for an image, model or recipe that cannot be used.
    """
    recipe = resolve(recipe, {})
    file, target = Path(image).expanduser(), Path(out).expanduser()
    made = open_demo(str(image), 1) if str(image).startswith(DEMO) else None
    if made is None and not os.path.isfile(file):
        raise PruneError(f"no image file {file}")
    if target.suffix.lower() != ".png":
        raise PruneError(f"out={target} must end in .png")
    loaded = at_size(open_model(model, transform), made.size if made and transform is None else None)
    plan_sites(family_of(loaded.model), recipe)
    tensor = load_image(file, loaded.transform) if made is None else loaded.transform(made.ref(0).read())
    if isinstance(tensor, Skipped):
        raise PruneError(f"image {file} cannot be read: {tensor.reason}")
    batch = tensor.unsqueeze(0)
    sites = look(loaded.model, recipe, batch.to(next(loaded.model.parameters())))[0]
    sheet = draw(pictures(batch, loaded.transform)[0], sites, f"{recipe}", f"{loaded.name}, {readable(file.name)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, lambda part: sheet.save(part, "PNG", optimize=True))
    except OSError as error:
        raise PruneError(f"{target} cannot be written ({error.strerror})") from None
    return Shown(str(target), loaded.name, str(recipe), sites[0].owner.size, [s.layer for s in sites], [s.tokens for s in sites])


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def lines(text: str, size: int, width: int) -> list[str]:
    """Text in lines that fit into so many pixels, broken after commas and spaces, and inside of what is longer than a line."""
    found, face = [""], font(size)
    for part in re.findall(r"[^, ]*[, ]+|[^, ]+", text):
        if found[-1] and face.getlength(found[-1] + part.rstrip()) > width:
            found.append("")
        for letter in part:
            if face.getlength(found[-1] + letter) > width and letter != " ":
                found.append("")
            found[-1] += letter
    return found


def draw(image: Image.Image, sites: list[Look], title: str, subtitle: str) -> Image.Image:
    """The sheet: the image, then score above kept patches for each site."""
    scale = max(1, -(-LEAST_SIDE // min(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    w, h = image.size
    scored = any(site.score is not None for site in sites)
    band = LINE + (h + GAP if scored else 0) + h + GAP
    columns = min(COLUMNS, len(sites))
    bands = -(-len(sites) // columns)
    width = (columns + 1) * w + columns * GAP
    names, others = lines(title, 24, width), lines(subtitle, 16, width)
    top = MARGIN + (len(names) + len(others)) * LINE + 16
    sheet = Image.new("RGB", (2 * MARGIN + width, top + bands * band + LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), "\n".join(names), INK, font(24), spacing=3)
    pen.text((MARGIN, MARGIN + LINE * len(names)), "\n".join(others), QUIET, font(16), spacing=10)
    pen.text((MARGIN, top), f"{sites[0].owner.size} patches", INK, font(17))
    sheet.paste(image, (MARGIN, top + LINE))
    if scored:
        y = top + LINE + h + GAP
        pen.text((MARGIN, y), "score at each site", INK, font(17))
        colour_bar(pen, (MARGIN, y + LINE), w, ("lowest", "highest"), QUIET, 15)
    for index, site in enumerate(sites):
        x = MARGIN + (1 + index % columns) * (w + GAP)
        y = top + index // columns * band
        pen.text((x, y), f"{site.title}: {site.tokens} tokens left", INK, font(17))
        if scored:
            sheet.paste(heat_map(image, site), (x, y + LINE))
        sheet.paste(kept(image, site), (x, y + LINE + (h + GAP if scored else 0)))
    legend(pen, (MARGIN, top + bands * band), sites)
    return sheet


def colour_bar(pen: ImageDraw.ImageDraw, place: tuple[int, int], width: int, ends: tuple[str, str], ink: Ink, size: int) -> None:
    """The colours of heat maps and what their ends mean."""
    x, y = place
    for column, colour in enumerate(inferno(np.linspace(0, 1, width)).tolist()):
        pen.line((x + column, y, x + column, y + 13), tuple(colour))
    pen.text((x, y + 18), ends[0], ink, font(size))
    pen.text((x + width, y + 18), ends[1], ink, font(size), anchor="ra")


def legend(pen: ImageDraw.ImageDraw, place: tuple[int, int], sites: list[Look]) -> None:
    """What whitened and coloured patches mean, as far as there are any."""
    x, y = place
    fused = any(site.fused for site in sites)
    entries = [((235, 235, 238), "dropped")] if any((site.owner < 0).any() for site in sites) else []
    entries += [(FUSED, "fused into one token at each site")] if fused else []
    if any(set(site.shared) - site.fused for site in sites):
        entries.append((GROUPS[0], "merged into one token with patches of the same colour"))
    for colour, text in entries:
        pen.rectangle((x, y + 2, x + 16, y + 18), fill=colour, outline=QUIET)
        pen.text((x + 24, y), text, INK, font(16))
        x += 24 + int(pen.textlength(text, font(16))) + 32


def heat_map(image: Image.Image, site: Look) -> Image.Image:
    """The score over the greyed image; patches without a token are white."""
    if site.score is None:
        return Image.new("RGB", image.size, (245, 245, 247))
    cells = np.concatenate([inferno(level(site.score)), np.full((*site.score.shape, 1), 205, np.uint8)], axis=-1)
    cells[np.isnan(site.score)] = (*WHITE[:3], 235)
    return over(image.convert("L").convert("RGB"), cells)


def level(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """A score in [0, 1]. Two percent at either end are cut so that one outlier does not paint everything else in one colour."""
    low, high = np.nanpercentile(score, (2, 98))
    found: NDArray[np.float64] = np.clip((np.nan_to_num(score) - low) / max(high - low, 1e-30), 0, 1)
    return found


def kept(image: Image.Image, site: Look) -> Image.Image:
    """The image with dropped patches whitened, shared slots coloured, and an outline around each shared slot."""
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
