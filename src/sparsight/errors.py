"""The one exception type of the library, and how its messages quote text from outside."""

import reprlib
from pathlib import PurePath

MOST = 80


class PruneError(ValueError):
    """A request that cannot be carried out: names the thing, what was got, what is possible and the fix."""


def shown(value: object, most: int = MOST) -> str:
    """A value from outside as a message quotes it: one line of at most `most` characters, the middle left out, control characters escaped."""
    try:
        plain, truth = isinstance(value, (str, PurePath)), isinstance(value, bool)
        text = str(value) if plain else str(value).lower() if truth else reprlib.repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, a list within lists within lists
        text = f"a long {type(value).__name__}"
    head = most * 2 // 3
    if len(text) > most:
        text = f"{text[:head]}...{text[head + 3 - most :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
