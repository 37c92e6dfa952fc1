"""Scores as smooth heat maps over the picture: one sheet per image, recipes below each other, blocks beside each other."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ..data.images import Folder, Skipped, even, load_image
from ..load.models import Loaded
from ..pages.analysis_page import Figure
from ..pages.page import picture_uri
from .analysis import Analysis
from .analysis_figures import DARK, DPI, LIGHT, Palette
from .block_probe import Probe, Sums
from .overlay import colour_bar, inferno, level
from .patches import pictures
from .rank import table
from .sheet import font, lines

SIDE, GAP, MARGIN, LINE = 150, 8, 24, 32
MOST = 12
"""Blocks on a sheet; of more, as many evenly spaced ones. The table has all."""
STRENGTH = 0.78
"""How much of the picture the colours cover."""


def sheets(done: Analysis, loaded: Loaded, folder: Folder, probe: Probe) -> tuple[dict[str, bytes], dict[str, Figure]]:
    """Each image's sheet as a PNG file by name, and what the page shows of it: a WebP, a tenth of the bytes."""
    files, shown = {}, {}
    for number, place in enumerate(places_of(probe)):
        tensor = load_image(folder.paths[place], loaded.transform)
        if isinstance(tensor, Skipped):
            continue
        picture = pictures(tensor.unsqueeze(0), loaded.transform)[0]
        maps = {
            (recipe, layer): tally.maps[place, index]
            for layer, tally in probe.tallies.items()
            for index, recipe in enumerate(done.recipes)
            if (place, index) in tally.maps
        }
        light, dark = (draw(picture, maps, done.maps[number], done.model, palette) for palette in (LIGHT, DARK))
        buffer = io.BytesIO()
        light.save(buffer, "PNG", optimize=True)
        files[name := f"scores{number}.png"] = buffer.getvalue()
        shown[name] = Figure(picture_uri(light, "webp"), picture_uri(dark, "webp"), round(light.width * 96 / DPI))
    return files, shown


def places_of(probe: Probe) -> list[int]:
    """Places in the folder of the images that have maps."""
    return sorted({place for tally in probe.tallies.values() for place, _ in tally.maps})


def draw(picture: Image.Image, maps: dict[tuple[str, int], Sums], name: str, model: str, palette: Palette) -> Image.Image:
    recipes = list(dict.fromkeys(recipe for recipe, _ in maps))
    layers = sorted({layer for _, layer in maps})
    layers = even(layers, min(MOST, len(layers)))
    picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)
    width, height = picture.size
    room = max(len(layers), 4) * (width + GAP) - GAP
    beside = room - width - 2 * GAP
    words = "\n".join([*lines(name, 22, beside), *lines(f"scores of all patches in {model}, not pruned", 22, beside)])
    labels = [lines(recipe, 22, room) for recipe in recipes]
    head = max(height, LINE * (words.count("\n") + 1) + 44)
    top = MARGIN + head + 3 * GAP + LINE
    bands = [LINE * len(label) + height + 2 * GAP for label in labels]
    sheet = Image.new("RGB", (2 * MARGIN + room, top + sum(bands) + MARGIN - GAP), palette.paper)
    pen = ImageDraw.Draw(sheet)
    sheet.paste(picture, (MARGIN, MARGIN))
    x = MARGIN + width + 2 * GAP
    pen.text((x, MARGIN - 4), words, palette.ink, font(22), spacing=7)
    bar = min(3 * width, beside)
    sheet.paste(colour_bar(bar, ("lowest score", "highest, kept first"), palette.quiet, palette.paper, 20), (x, MARGIN + head - 38))
    for column, layer in enumerate(layers):
        pen.text((MARGIN + column * (width + GAP), top - LINE), f"block {layer}", palette.quiet, font(20))
    for row, recipe in enumerate(recipes):
        y = top + sum(bands[:row])
        pen.text((MARGIN, y), "\n".join(labels[row]), palette.ink, font(22), spacing=7)
        for column, layer in enumerate(layers):
            if (recipe, layer) in maps:
                place = (MARGIN + column * (width + GAP), y + LINE * len(labels[row]))
                sheet.paste(heat(picture, maps[recipe, layer]), place)
    return sheet


def heat(picture: Image.Image, score: Sums) -> Image.Image:
    """A score [h, w] in colours over the greyed picture, without the edges of patches."""
    smooth = Image.fromarray(level(score).astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    colours = Image.fromarray(inferno(np.clip(np.asarray(smooth), 0, 1)))
    return Image.blend(picture.convert("L").convert("RGB"), colours, STRENGTH)


def maps_table(done: Analysis, folder: Folder, probe: Probe) -> str:
    rows = [
        (name, done.recipes[index], layer, y, x, repr(float(value)))
        for name, place in zip(done.maps, places_of(probe), strict=True)
        for layer, tally in probe.tallies.items()
        for (at, index), scores in tally.maps.items()
        if at == place
        for (y, x), value in np.ndenumerate(scores)
    ]
    return table(["image", "recipe", "block", "row", "column", "score"], rows)
