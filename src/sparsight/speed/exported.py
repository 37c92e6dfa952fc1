"""What every export does with its result: written beside its target first, compared with PyTorch, told in one line."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..errors import PruneError, shown

TOLERANCE = 1e-4
"""Largest difference of an output that passes, as a share of the largest output (of 1 if that is smaller)."""


class Result:
    """A dataclass about a file or a folder that was written, with difference, scale and same_kept of its check."""

    difference: float
    scale: float
    same_kept: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"  # type: ignore[call-overload]

    def agreement(self, pictures: str, same: str, overlap: float | None = None) -> str:
        """What the check said, in words; same: what else was the same; overlap: share of the kept tokens that are the same."""
        tokens = "" if overlap is None else f" ({percent(overlap)} of the tokens)"
        return (
            f"on {pictures} the same tokens kept in {percent(self.same_kept)}{tokens}, the same {same}, largest difference "
            f"{self.difference:.1e} (largest output {self.scale:.1f})"
        )


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def check_difference(difference: float, scale: float) -> None:
    """Raise a PruneError for what is too far off."""
    if not difference <= TOLERANCE * max(1.0, scale):
        raise PruneError(f"the export differs from PyTorch by {difference:.1e} (outputs up to {scale:.1f}); nothing was written")


def check_place(target: Path, kind: str) -> None:
    """Raise a PruneError if nothing can be written under that name; kind: "file" or "folder"."""
    parent = target.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PruneError(f"{shown(target)} cannot be written; give a {kind} in a folder that exists and is yours")


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A folder beside the target that is gone afterwards, whatever happens."""
    room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        yield room
    except OSError as error:
        raise PruneError(f"{shown(target)} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(room, ignore_errors=True)
