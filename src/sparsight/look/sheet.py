"""Sheet: texts, pictures and boxes at their places, drawn as pixels or written as SVG."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from ..pages.page import picture_uri

Ink = str | tuple[int, int, int]
INK, QUIET, PAPER = (28, 28, 30), (110, 110, 115), (255, 255, 255)


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


@dataclass(frozen=True)
class Words:
    """One line of text, its upper left corner at x, y."""

    x: int
    y: int
    text: str
    size: int
    ink: Ink

    def draw(self, sheet: Image.Image, pen: ImageDraw.ImageDraw) -> None:
        pen.text((self.x, self.y), self.text, self.ink, font(self.size))

    def svg(self) -> str:
        """The same width in every font."""
        width = font(self.size).getlength(self.text)
        fitted = f' textLength="{width:.0f}" lengthAdjust="spacingAndGlyphs"' if width else ""
        text = html.escape("".join(letter if letter.isprintable() else "?" for letter in self.text))
        return f'<text x="{self.x}" y="{self.y + round(0.95 * self.size)}" font-size="{self.size}" fill="{colour(self.ink)}"{fitted}>{text}</text>'


@dataclass(frozen=True)
class Picture:
    x: int
    y: int
    image: Image.Image

    def draw(self, sheet: Image.Image, pen: ImageDraw.ImageDraw) -> None:
        sheet.paste(self.image, (self.x, self.y))

    def svg(self) -> str:
        w, h = self.image.size
        return f'<image x="{self.x}" y="{self.y}" width="{w}" height="{h}" href="{picture_uri(self.image)}"/>'


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    width: int
    height: int
    fill: Ink

    def draw(self, sheet: Image.Image, pen: ImageDraw.ImageDraw) -> None:
        pen.rectangle((self.x, self.y, self.x + self.width, self.y + self.height), fill=self.fill, outline=QUIET)

    def svg(self) -> str:
        place = f'x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}"'
        return f'<rect {place} fill="{colour(self.fill)}" stroke="{colour(QUIET)}"/>'


@dataclass
class Sheet:
    """What is to be drawn, in the order of drawing, on white paper."""

    width: int
    height: int = 0
    marks: list[Words | Picture | Box] = field(default_factory=list)

    def write(self, x: int, y: int, texts: list[str], size: int, ink: Ink = INK) -> int:
        """Lines below each other; returns where the next one would begin."""
        for text in texts:
            self.marks.append(Words(x, y, text, size, ink))
            y += line_of(size)
        self.height = max(self.height, y)
        return y

    def paste(self, x: int, y: int, image: Image.Image) -> int:
        """A picture; returns where it ends."""
        self.marks.append(Picture(x, y, image))
        self.height = max(self.height, y + image.height)
        return y + image.height

    def raster(self) -> Image.Image:
        """The sheet as pixels."""
        drawn = Image.new("RGB", (self.width, self.height), PAPER)
        pen = ImageDraw.Draw(drawn)
        for mark in self.marks:
            mark.draw(drawn, pen)
        return drawn

    def svg(self) -> str:
        """The sheet as SVG: pictures as PNG inside, texts as text."""
        inside = "\n".join(mark.svg() for mark in self.marks)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" '
            f'font-family="system-ui, sans-serif">\n<rect width="100%" height="100%" fill="{colour(PAPER)}"/>\n{inside}\n</svg>\n'
        )


def line_of(size: int) -> int:
    """Height of a line of text."""
    return round(1.3 * size)


def colour(ink: Ink) -> str:
    """A colour as SVG writes it."""
    return ink if isinstance(ink, str) else "#{:02x}{:02x}{:02x}".format(*ink)
