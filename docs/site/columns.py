"""Docstrings that list names in one column and their meanings in the next become lists."""

from __future__ import annotations

import re
from typing import Any

import griffe

FIRST = re.compile(r"^[\w, ]+? {2,}(?=\S)")


class Columns(griffe.Extension):
    """Rewrites docstrings as they are read."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n\n".join(listed(part) for part in obj.docstring.value.split("\n\n"))


def listed(paragraph: str) -> str:
    """The paragraph with its two columns as a list, if it has any."""
    lines = paragraph.splitlines()
    start = next((number for number, line in enumerate(lines) if FIRST.match(line)), None)
    if start is None:
        return paragraph
    width = FIRST.match(lines[start]).end()  # type: ignore[union-attr]
    found = [*lines[:start], ""]
    for line in lines[start:]:
        name, text = line[:width].strip(), line[width:]
        if name and re.fullmatch(r"[\w, ]+", name) and line[width - 1 : width] == " ":
            found.append(f"* `{name}`: {text}")
        elif name:
            found += ["", line]
        else:
            found.append(f"    {text}")
    return "\n".join(found)
