"""Sheets of what recipes kept: one image under one recipe site by site, or images below each other and recipes beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .overlay import colour_bar, heat_map, kept
from .patches import FUSED, GROUPS, Look
from .sheet import INK, PAPER, QUIET, Box, Sheet, font, line_of, lines

MARGIN, GAP, LINE = 28, 18, 26
COLUMNS = 4
"""Sites beside each other before a new band of pictures begins."""
LEAST_SIDE, CELL, NEAR = 240, 224, 6
CHANGED = (176, 58, 20)


@dataclass(frozen=True, eq=False)
class View:
    """A picture whose patches a model sees: the image, or a frame. sites: what happened to them at each site."""

    picture: Image.Image
    sites: tuple[Look, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """One image under one recipe. before, after: what the model says of it, unpruned and pruned; tokens, layers: of each site; total: before
    the first one. parts: what the views are, if there are several."""

    image: str
    recipe: str
    total: int
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    before: str
    after: str
    views: tuple[View, ...]
    parts: str = ""

    @property
    def left(self) -> str:
        """Tokens left after the last site, in words."""
        return self.left_after(len(self.tokens))

    def left_after(self, sites: int) -> str:
        """Tokens left after so many sites, in words."""
        count = self.tokens[sites - 1] if sites else self.total
        return f"{count} of {self.total} tokens left, {100 * count / self.total:.3g}%"

    def reached(self, layer: int) -> int:
        """How many sites there are up to a layer."""
        return sum(one <= layer for one in self.layers)

    @property
    def said(self) -> str:
        """What the model says without and with pruning."""
        if not self.before:
            return self.after
        return f"unpruned: {self.before}; pruned: {self.after}"

    def __str__(self) -> str:
        steps = ", ".join(
            f"{title}: {n}" for title, n in zip((site.title for site in self.views[0].sites), self.tokens, strict=True)
        )
        return f"{self.recipe}, {self.total} {self.views[0].sites[0].noun}; {steps}" + (f"; {self.said}" if self.said else "")


def site_sheet(cell: Cell, subtitle: str) -> Sheet:
    """The image, then score above kept patches for each site."""
    image, sites = larger(cell.views[0].picture), cell.views[0].sites
    w, h = image.size
    scored = any(site.score is not None for site in sites)
    band = LINE + (h + GAP if scored else 0) + h + GAP
    columns = min(COLUMNS, len(sites))
    width = (columns + 1) * w + columns * GAP
    sheet = Sheet(2 * MARGIN + width)
    y = sheet.write(MARGIN, MARGIN - 6, lines(cell.recipe, 24, width), 24)
    y = sheet.write(MARGIN, y, lines(cell.left + (f"; {cell.said}" if cell.said else ""), 18, width), 18)
    top = sheet.write(MARGIN, y + 2, lines(subtitle, 16, width), 16, QUIET) + 14
    sheet.write(MARGIN, top, [f"{cell.total} {sites[0].noun}"], 17)
    sheet.paste(MARGIN, top + LINE, image)
    if scored:
        y = sheet.write(MARGIN, top + LINE + h + GAP, ["score at each site"], 17)
        sheet.paste(MARGIN, y + 4, colour_bar(w, ("lowest", "highest"), QUIET, PAPER, 15))
    for index, site in enumerate(sites):
        x, y = MARGIN + (1 + index % columns) * (w + GAP), top + index // columns * band
        sheet.write(x, y, [f"{site.title}: {site.tokens} tokens left"], 17)
        if scored:
            sheet.paste(x, y + LINE, heat_map(image, site))
        sheet.paste(x, y + LINE + (h + GAP if scored else 0), kept(image, site))
    legend(sheet, sites)
    return sheet


def table_sheet(rows: Sequence[Sequence[Cell]], title: str, subtitle: str, layer: int | None = None) -> Sheet:
    """Images below each other, recipes beside each other. layer: what is left after it; by default after all."""
    pictures = [[fitted(view.picture, CELL if len(row[0].views) < 3 else CELL // 2) for view in row[0].views] for row in rows]
    wide = max(min(2 * CELL + NEAR, sum(image.width + NEAR for image in images) - NEAR) for images in pictures)
    wide = max(wide, CELL)
    width = (1 + len(rows[0])) * (wide + GAP) - GAP
    sheet = Sheet(2 * MARGIN + width)
    y = sheet.write(MARGIN, MARGIN - 6, lines(title, 24, width), 24)
    y = sheet.write(MARGIN, y, lines(subtitle, 16, width), 16, QUIET) + 14
    heads = [lines(cell.recipe, 17, wide) for cell in rows[0]]
    for column, head in enumerate(heads):
        sheet.write(MARGIN + (1 + column) * (wide + GAP), y, head, 17)
    y += line_of(17) * max(map(len, heads)) + 8
    for row, images in zip(rows, pictures, strict=True):
        first = [(row[0].image, INK), (f"{row[0].total} tokens{row[0].parts}", QUIET), (row[0].before, INK)]
        ends = [panel(sheet, MARGIN, y, wide, images, first)]
        for column, cell in enumerate(row):
            sites = len(cell.layers) if layer is None else cell.reached(layer)
            drawn = [kept(image, view.sites[sites - 1]) if sites else image for image, view in zip(images, cell.views, strict=True)]
            done = sites == len(cell.layers)
            said = (cell.after if done else "", CHANGED if done and words(cell.after) != words(cell.before) else INK)
            ends.append(panel(sheet, MARGIN + (1 + column) * (wide + GAP), y, wide, drawn, [(cell.left_after(sites), QUIET), said]))
        y = max(ends) + GAP
    legend(sheet, [view.sites[-1] for row in rows for cell in row for view in cell.views])
    return sheet


def panel(sheet: Sheet, x: int, y: int, wide: int, images: list[Image.Image], texts: list[tuple[str, tuple[int, int, int]]]) -> int:
    """Pictures beside each other, as far as there is room, with texts below; returns where it ends."""
    bottom, at = y, x
    for image in images:
        if at > x and at + image.width > x + wide:
            at, y = x, bottom + NEAR
        bottom = max(bottom, sheet.paste(at, y, image))
        at += image.width + NEAR
    bottom += 4
    for text, ink in texts:
        bottom = sheet.write(x, bottom, lines(text, 16, wide), 16, ink) if text else bottom
    return bottom


def words(said: str) -> str:
    """What was said, without its probability."""
    return said.rpartition(" ")[0] if said.endswith("%") else said


def legend(sheet: Sheet, sites: Sequence[Look]) -> None:
    """What whitened and coloured patches mean, as far as there are any."""
    x, y = MARGIN, sheet.height + 10
    sites = [site for site in sites if not site.smaller]
    entries = [((235, 235, 238), "dropped")] if any((site.owner < 0).any() for site in sites) else []
    entries += [(FUSED, "fused into one token at each site")] if any(site.fused for site in sites) else []
    if any(set(site.shared) - site.fused for site in sites):
        entries.append((GROUPS[0], "merged into one token with patches of the same colour"))
    for colour, text in entries:
        length = 24 + int(font(16).getlength(text)) + 32
        if x > MARGIN and x + length > sheet.width:
            x, y = MARGIN, y + LINE
        sheet.marks.append(Box(x, y + 2, 16, 16, colour))
        sheet.write(x + 24, y, [text], 16)
        x += length
    sheet.height += MARGIN


def larger(image: Image.Image) -> Image.Image:
    """A picture large enough to be looked at."""
    scale = max(1, -(-LEAST_SIDE // min(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """A picture so high, at most twice as wide."""
    scale = min(side / image.height, 2 * side / image.width)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
