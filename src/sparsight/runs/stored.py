"""Results on disk, read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import PruneError

Result = TypeVar("Result")


def read_result(path: str | Path, parse: Callable[[str], Result], verb: str, name: str = "results.json") -> Result:
    """What `parse` makes of a file's text; of a folder the file `name`. Raises PruneError if it is no result of the verb."""
    file = Path(path)
    try:
        return parse((file / name if file.is_dir() else file).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(f"{file} is no result of {verb}: {error}") from None
