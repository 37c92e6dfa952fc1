"""render(template, ...) -> str: a Jinja2 template of this folder with the values of a result, and how numbers are written on pages."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from PIL import Image

    from ..runs.intervals import Interval, Spread

TIMES, DASH, MINUS = "\u00d7", "\u2013", "\u2212"
USUAL: dict[str, dict[str, Any]] = {"png": {"optimize": True}, "jpeg": {"quality": 82, "optimize": True}, "webp": {"quality": 80}}
"""How pictures are written for a page."""
ROOM = 2_000_000
"""Characters of a page's pictures, so that the whole stays below 3 MB."""


def render(template: str, **values: Any) -> str:
    """The page. Every value is escaped; a name that a template does not get is an error."""
    text = environment().get_template(template).render(**values)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # names of files need not be text


@cache
def environment() -> Environment:
    """Templates of this folder, the filters that they use, and the one script, which no other one can join: its hash is in the page's policy."""
    made = Environment(
        loader=PackageLoader("sparsight", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {write.__name__: write for write in (percent, signed, change, span, quartiles, versions, breakable)}
    script = (files(__package__) / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {"TIMES": TIMES, "DASH": DASH, "script": Markup(script), "script_hash": f"sha256-{digest}"}
    return made


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}"


def signed(value: float | None, decimals: int = 2) -> str:
    return DASH if value is None else f"{value:+.{decimals}f}".replace("-", MINUS)


def change(move: Interval | None) -> str:
    """A change of a fraction in points, with its interval."""
    if move is None:
        return ""
    value, low, high = (signed(100 * v, 1) for v in (move.value, move.low, move.high))
    return f"{value} [{low}, {high}]"


def span(share: Interval) -> str:
    """The interval of a fraction in percent."""
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"


def quartiles(found: Spread) -> str:
    return f"{found.low:.2f} to {found.high:.2f}"


def versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def breakable(name: str) -> Markup:
    """A long name that may be broken after its commas and colons."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[,:])", name))


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def data_uri(content: bytes, kind: str = "png") -> str:
    """A file as text for a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(picture: Image.Image, kind: str = "png", **options: Any) -> str:
    """A picture as text for a page; kind: png, jpeg or webp, with options of Pillow's."""
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), **USUAL[kind] | options)
    return data_uri(buffer.getvalue(), kind)


def fitting(sizes: Iterable[int]) -> int:
    """How many of these pictures a page has room for, by their characters; one at least."""
    count = total = 0
    for size in sizes:
        total += size
        if count and total > ROOM:
            break
        count += 1
    return count
