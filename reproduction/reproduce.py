"""reproduce(id) -> Reproduction: a published table or figure, run where data and weights are at hand, published beside measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sparsight.errors import PruneError
from sparsight.runs.settings import Settings
from sparsight.runs.store import write_text
from sparsight.runs.sweep import Listener, ignore

from .order import Order, Yield
from .published import RELATIVE, UNPRUNED, Entry, Row, entry, index
from .reproduce_runs import runner, wanting

Names = str | Path | Sequence[str] | Mapping[str, str] | None
"""One name for everything, or KEY=NAME for some."""


@dataclass(frozen=True)
class Line:
    """One row: its numbers as published are in `row.numbers`, what was measured in `measured`; `note` says what stood in the way."""

    row: Row
    measured: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def difference(self, measure: str) -> float | None:
        """Measured minus published, None where one of them is not there."""
        if measure not in self.measured or measure not in self.row.numbers:
            return None
        return self.measured[measure] - self.row.numbers[measure]

    def __str__(self) -> str:
        return f"{self.row}: " + (
            ", ".join(f"{key} {value:g}" for key, value in self.measured.items()) or self.note or "not measured"
        )


@dataclass(frozen=True)
class Reproduction:
    """What came of an entry.

    models, data: what was used, by key; differs: in what the run is not the paper's; missing: what has to be brought before the
    rest can run; files: pictures and results that were written.
    """

    entry: Entry
    models: dict[str, str]
    data: dict[str, str]
    settings: str
    date: str
    versions: dict[str, str]
    differs: list[str]
    missing: list[str]
    lines: list[Line]
    files: list[str]

    @property
    def measured(self) -> bool:
        return any(line.measured for line in self.lines) or bool(self.files)

    def __str__(self) -> str:
        done = sum(bool(line.measured) for line in self.lines)
        return f"{self.entry}: {done} of {len(self.lines)} rows measured"

    def to_json(self) -> str:
        """All of it as JSON text, with the differences."""
        plain = asdict(self)
        for line, data in zip(self.lines, plain["lines"], strict=True):
            data["difference"] = {key: line.difference(key) for key in line.measured if key in line.row.numbers}
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def reproduce(
    name: str,
    model: Names = None,
    data: Names = None,
    out: str | Path | None = None,
    *,
    only: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    listen: Listener | None = None,
) -> Reproduction:
    """Run a published table or figure as far as weights and data are at hand, and set what was measured beside what was published.

    model, data: used instead of the paper's, for all of its models and data sets or as KEY=NAME for one (the keys are those that
    `missing` names). only: rows that contain this text. out: folder of the results, runs/reproduce/ID by default; nothing is written
    unless something is measured. What is not at hand is said in `missing`, never guessed. Raises PruneError for unknown names.
    """
    from sparsight.runs.settings import check_settings

    found = entry(name)
    rows = found.select(only)
    settings = check_settings(Settings(batch_size, precision, device, seed, seconds=0), 0)
    models = assign("model", [row.model for row in rows if row.model], model)
    keys = [row.data for row in rows if row.data] + [m.data for m in found.measures if m.data]
    places = assign("data", keys, data)
    folder = Path(out).expanduser() if out else Path("runs/reproduce") / found.id
    order = Order(found, rows, models, places, limit, settings, folder, listen or ignore)
    brought = Yield(missing=wanting(order))
    run = runner(found.command)
    if run is not None and any(places.values()):
        run(order, brought)
    result = collect(order, brought)
    if result.measured:
        write_text(folder / "reproduction.json", result.to_json())
    return result


def assign(what: str, keys: Sequence[str], given: Names) -> dict[str, str]:
    """Each key with what was given for it, "" for nothing. One name without a key is for all of them."""
    found = dict.fromkeys(keys, "")
    pairs: list[tuple[str, str]] = []
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif given is not None:
        for text in [given] if isinstance(given, (str, Path)) else given:
            key, equals, value = str(text).partition("=")
            pairs.append((key, value) if equals and key in found else ("", str(text)))
    for key, value in sorted(pairs, key=lambda pair: pair[0] != ""):
        if key and key not in found:
            raise PruneError(f"{what} {key!r} is not used here; there are {', '.join(found) or 'none'}")
        found.update({key: value} if key else dict.fromkeys(found, value))
    return found


def collect(order: Order, brought: Yield) -> Reproduction:
    """Put the numbers beside the published ones."""
    lines = relate(order.entry, [line(order.entry, row, brought) for row in order.rows])
    settings = f"{order.settings}" + (f", limit {order.limit}" if order.limit else "")
    return Reproduction(
        order.entry,
        {key: name or index().models[key].name for key, name in order.models.items()},
        {key: place for key, place in order.data.items() if place},
        settings,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        brought.versions,
        list(dict.fromkeys(brought.differs)),
        list(dict.fromkeys(brought.missing)),
        lines,
        brought.files,
    )


def line(found: Entry, row: Row, brought: Yield) -> Line:
    """One row with its measures; an average is taken where all that it averages is there."""
    measured = {key: value for key, value in brought.by_label.get(row.label, {}).items() if found.measure(key)}
    for measure in found.measures:
        key = (row.model, measure.data or row.data, row.recipe, measure.key)
        if key in brought.numbers:
            measured[measure.key] = brought.numbers[key]
    parts = [measure for measure in found.measures if measure.data]
    if found.measure("average") and parts and all(measure.key in measured for measure in parts):
        measured["average"] = sum(measured[m.key] / m.scale for m in parts) / len(parts)
    note = brought.notes.get((row.model, row.data, row.recipe), "")
    if row.pending:
        note = f"no method {row.method!r} in this version"
    return Line(row, measured, note)


def relate(found: Entry, lines: list[Line]) -> list[Line]:
    """Relative scores by the entry's rule, where the unpruned model was measured on the same sets."""
    whole = next((item.measured for item in lines if item.row.recipe == UNPRUNED), {})
    parts = [measure.key for measure in found.measures if measure.data]
    for item in lines:
        if found.relative == RELATIVE[1] and "average" in item.measured and whole.get("average"):
            item.measured["relative"] = 100 * item.measured["average"] / whole["average"]
        elif found.relative == RELATIVE[0] and parts and all(item.measured.get(key) and whole.get(key) for key in parts):
            item.measured["relative"] = 100 * sum(item.measured[key] / whole[key] for key in parts) / len(parts)
    return lines
