"""count(entries) -> Count per row: published GFLOPs against multiply-accumulates counted on the meta device, no weights needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from torch import nn

from sparsight.errors import PruneError
from sparsight.speed.macs import macs, named, skeleton

from .published import Entry, Row, index

MEASURE = "gmacs"
TWICE_ROUNDED = 3e-4
"""Allowance for numbers that were rounded twice, such as 2.8498, 2.85, 2.9."""


@dataclass(frozen=True)
class Count:
    """Published and counted GFLOPs (10^9 multiply-accumulates) of one row. counted None: `reason` says why not.

    within: whether both agree to the printed rounding; where they do not, `reason` is what is known about it.
    """

    entry: str
    row: Row
    model: str
    published: float
    counted: float | None
    within: bool
    reason: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.counted is None else self.counted - self.published

    @property
    def verdict(self) -> str:
        """In one word or two: agrees, differs, known to differ, not counted."""
        if self.counted is None:
            return "not counted"
        return "agrees" if self.within else "known to differ" if self.reason else "differs"

    def __str__(self) -> str:
        found = "" if self.counted is None else f", counted {self.counted:.3f}"
        return f"{self.entry} {self.row}: published {self.published:g}{found}, {self.verdict}" + (
            f" ({self.reason})" if self.reason else ""
        )


def count(entries: Iterable[Entry], only: str | None = None) -> Iterator[Count]:
    """The rows that have GFLOPs, one by one, counted as the papers count (`macs(..., convention="published")`)."""
    for entry in entries:
        measure = entry.measure(MEASURE)
        if measure is None:
            continue
        for row in entry.select(only):
            if MEASURE in row.numbers:
                yield count_row(entry, row, measure.decimals)


def count_row(entry: Entry, row: Row, decimals: int) -> Count:
    """One row; what cannot be counted says why."""
    published = row.numbers[MEASURE]
    architecture = index().models[row.model].macs
    if row.pending:
        return Count(entry.id, row, architecture, published, None, False, f"no method {row.method!r} in this version")
    try:
        counted = counted_as_published(architecture, row.recipe if row.method else "") / 1e9
    except PruneError as error:
        return Count(entry.id, row, architecture, published, None, False, str(error))
    within = abs(counted - published) <= 0.5 * 10**-decimals + TWICE_ROUNDED
    return Count(entry.id, row, architecture, published, counted, within, entry.oddity(row, MEASURE))


@cache
def counted_as_published(architecture: str, recipe: str) -> int:
    """Multiply-accumulates of a timm architecture under a recipe, "" for none, in the convention of the tables."""
    return macs(empty(architecture), recipe or None, convention="published")


@cache
def empty(architecture: str) -> nn.Module:
    """The architecture without data."""
    return skeleton(named(architecture, 224), 224)
