"""What a runner of published entries is given, and what it brings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sparsight.runs.settings import Settings
from sparsight.runs.sweep import Listener

from .published import Entry, Row


@dataclass(frozen=True)
class Order:
    """What a runner needs: the entry's chosen rows, what to use for its models and data sets ("" = not at hand), and how to run."""

    entry: Entry
    rows: list[Row]
    models: dict[str, str]
    data: dict[str, str]
    limit: int | None
    settings: Settings
    out: Path
    listen: Listener


@dataclass
class Yield:
    """What a runner brings: numbers by (model, data, recipe, measure), or by label and measure for rows without a recipe, and remarks."""

    numbers: dict[tuple[str, str, str, str], float] = field(default_factory=dict)
    by_label: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[tuple[str, str, str], str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
