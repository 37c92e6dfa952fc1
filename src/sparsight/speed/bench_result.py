"""What `bench` returns: one row per recipe, precision and backend, each timed beside the unpruned model, as a table and JSON."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..runs.comparison import UNPRUNED
from ..runs.store import read_result
from .timing import Spread, spread


@dataclass(frozen=True)
class Timing:
    """Seconds of single forwards at one batch size, pruned and, right beside each, unpruned in the same engine."""

    batch: int
    runs: list[float] = field(repr=False)
    beside: list[float] = field(repr=False)

    @property
    def seconds(self) -> float:
        return statistics.median(self.runs)

    @property
    def unpruned(self) -> float:
        """Seconds of the unpruned forwards beside."""
        return statistics.median(self.beside)

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def p95(self) -> float:
        """The time that 95% of the forwards stay below."""
        return statistics.quantiles(self.runs, n=20, method="inclusive")[-1]

    @property
    def speedup(self) -> Spread:
        return spread(before / after for before, after in zip(self.beside, self.runs, strict=True))

    def __str__(self) -> str:
        return f"batch {self.batch}: {1e3 * self.seconds:.1f} ms ({1e3 * self.unpruned:.1f} unpruned), {self.images_per_second:.1f} images/s, speed-up {self.speedup}"


@dataclass(frozen=True)
class BenchRow:
    """One recipe in one engine.

    mac_ratio: multiply-accumulates of the unpruned model over the pruned one's. peak_memory: bytes at the largest batch. site_share:
    part of the pruned blocks' time that scoring, choosing and moving tokens takes, at the largest batch. Both None where the engine
    cannot be looked into.
    """

    recipe: str
    precision: str
    backend: str
    tokens: list[int]
    macs: int
    mac_ratio: float
    timings: list[Timing] = field(repr=False)
    peak_memory: int | None
    site_share: float | None

    @property
    def engine(self) -> tuple[str, str]:
        return self.precision, self.backend

    @property
    def latency(self) -> Timing:
        """At the smallest batch."""
        return self.timings[0]

    @property
    def throughput(self) -> Timing:
        """At the batch with the most images per second."""
        return max(self.timings, key=lambda timing: timing.images_per_second)

    @property
    def largest(self) -> Timing:
        return self.timings[-1]

    def share(self, timing: Timing) -> float:
        """Measured speed-up as a share of the MAC ratio."""
        return timing.speedup.median / self.mac_ratio

    def __str__(self) -> str:
        return (
            f"{self.recipe}, {self.precision}, {self.backend}: {1e3 * self.latency.seconds:.1f} ms at batch {self.latency.batch} (p95 "
            f"{1e3 * self.latency.p95:.1f}, unpruned {1e3 * self.latency.unpruned:.1f}), {self.throughput.images_per_second:.1f} images/s at batch {self.throughput.batch}, speed-up "
            f"{self.latency.speedup.median:.2f} and {self.throughput.speedup.median:.2f} of {self.mac_ratio:.2f} in MACs"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, and what follows from it for readers of the file."""
        summary = [
            {"batch": t.batch, "p50": t.seconds, "p95": t.p95, "unpruned_p50": t.unpruned, "images_per_second": t.images_per_second, "speedup": asdict(t.speedup),
             "share": self.share(t)}
            for t in self.timings
        ]  # fmt: skip
        return {**asdict(self), "summary": summary}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> BenchRow:
        """Read what `to_dict` made."""
        kept = {name: value for name, value in data.items() if name != "summary"}
        return BenchRow(**{**kept, "timings": [Timing(**timing) for timing in data["timings"]]})


@dataclass(frozen=True)
class Bench:
    """Rows of one model; those of an engine follow each other, its unpruned row first."""

    model: str
    image_size: tuple[int, int]
    batches: list[int]
    seconds: float
    device: str
    threads: int
    date: str
    versions: dict[str, str]
    memory_method: str
    notes: list[str]
    rows: list[BenchRow] = field(repr=False)

    def row(self, recipe: str, precision: str = "fp32", backend: str = "eager") -> BenchRow:
        """The row of a recipe in an engine."""
        for row in self.rows:
            if (row.recipe, *row.engine) == (recipe, precision, backend):
                return row
        raise PruneError(f"no row {recipe!r} in {precision}, {backend}; there are {'; '.join(row.recipe for row in self.rows)}")

    @property
    def engines(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys(row.engine for row in self.rows))

    def unpruned(self, row: BenchRow) -> BenchRow:
        """The unpruned row of the same engine."""
        return self.row(UNPRUNED, *row.engine)

    def __str__(self) -> str:
        h, w = self.image_size
        return f"{self.model} at {h} x {w}, {self.device}, {self.threads} threads"

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps({**asdict(self), "rows": [row.to_dict() for row in self.rows]}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Bench:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        rows, size = [BenchRow.from_dict(row) for row in data.pop("rows")], tuple(data.pop("image_size"))
        return Bench(**data, image_size=size, rows=rows)

    @staticmethod
    def load(path: str | Path) -> Bench:
        """Read results.json, or the folder that holds it."""
        return read_result(path, Bench.from_json, "bench")
