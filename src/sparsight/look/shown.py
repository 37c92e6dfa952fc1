"""Shown: what `show` returns; as a picture in a file, a moving one, or in a notebook."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from ..data.reading import readable
from ..errors import PruneError
from ..pages.page import data_uri
from ..runs.store import write
from .sheet import Sheet
from .sheets import Cell, site_sheet, table_sheet

Given = str | Path | Image.Image
ANIMATED = {".gif": "GIF", ".webp": "WEBP"}
KINDS = (".png", ".svg", *ANIMATED)
STEP, LAST = 900, 2600
"""Milliseconds that a frame of an animation stays, and the last one."""


def name_of(one: Given) -> str:
    """What an image is called on the sheet."""
    return "image" if isinstance(one, Image.Image) else readable(Path(one).name)


@dataclass(frozen=True)
class Shown:
    """What `show` found, image by image and, for each, recipe by recipe; a notebook displays it. path: the file, None if none was asked for."""

    path: str | None
    model: str
    rows: list[list[Cell]] = field(repr=False)

    def __str__(self) -> str:
        several = len(self.rows) > 1
        text = "\n".join(
            f"{cell.image}: {cell} ({self.model})" if several else f"{cell} ({self.model})" for row in self.rows for cell in row
        )
        return f"{self.path}: {text}" if self.path and "\n" not in text else f"{text}\nwrote {self.path}" if self.path else text

    @cached_property
    def sheet(self) -> Sheet:
        """One image under one recipe site by site, else the last site of each."""
        first = self.rows[0][0]
        if len(self.rows) == len(self.rows[0]) == len(first.views) == 1:
            return site_sheet(first, f"{self.model}, {first.image}")
        return table_sheet(self.rows, self.title, f"{self.model}; what is left after the last site")

    @property
    def title(self) -> str:
        names = [
            f"{len(found)} {noun}s" if len(found) > 1 else found[0]
            for found, noun in (([r[0].image for r in self.rows], "image"), ([c.recipe for c in self.rows[0]], "recipe"))
        ]
        return f"{names[0]}, {names[1]}"

    @property
    def layers(self) -> list[int]:
        """Where tokens leave in any cell."""
        return sorted({layer for row in self.rows for cell in row for layer in cell.layers})

    def frames(self) -> list[Image.Image]:
        """The whole pictures, then what is left after each layer."""
        place = self.rows[0][0].views[0].sites[0].place
        names = ["nothing has left yet"] + [
            f"after {place} {layer}" if layer >= 0 else "before the first layer" for layer in self.layers
        ]
        sheets = [
            table_sheet(self.rows, self.title, f"{self.model}; {name}", layer)
            for name, layer in zip(names, [-9, *self.layers], strict=True)
        ]
        height = max(sheet.height for sheet in sheets)
        for sheet in sheets:
            sheet.height = height
        return [sheet.raster() for sheet in sheets]

    def to_bytes(self, suffix: str = ".png") -> bytes:
        """The picture as a file: .png, .svg, or .gif and .webp, which move."""
        if suffix == ".svg":
            return self.sheet.svg().encode()
        buffer = io.BytesIO()
        if suffix == ".png":
            self.sheet.raster().save(buffer, "PNG")
            return buffer.getvalue()
        first, *others = self.frames()
        times = [STEP] * len(others) + [LAST]
        first.save(buffer, ANIMATED[suffix], save_all=True, append_images=others, duration=times, loop=0, quality=85)
        return buffer.getvalue()

    def save(self, out: str | Path) -> Shown:
        """Write the picture as the ending of its name says. Raises PruneError where it cannot be written."""
        target = target_of(out)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target, lambda part: part.write_bytes(self.to_bytes(target.suffix.lower())))
        except OSError as error:
            raise PruneError(f"{target} cannot be written ({error.strerror})") from None
        return Shown(str(target), self.model, self.rows)

    def _repr_png_(self) -> bytes:
        return self.to_bytes()

    def _repr_html_(self) -> str | None:
        """An animation if that was written; else there is the PNG."""
        suffix = Path(self.path or "").suffix.lower()
        if suffix not in ANIMATED:
            return None
        return f'<img alt="{html.escape(str(self))}" src="{data_uri(self.to_bytes(suffix), suffix[1:])}">'


def target_of(out: str | Path) -> Path:
    """Where to write. Raises PruneError for an ending that is none of a picture."""
    target = Path(out).expanduser()
    if target.suffix.lower() not in KINDS:
        raise PruneError(f"out={target} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    return target
