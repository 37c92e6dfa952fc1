"""sensitivity(...) -> Sensitivity: what each place of a model loses when tokens leave there alone; a first look before a search."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..data.reading import Transform
from ..errors import PruneError
from ..load.models import Loaded
from ..ops.schedule import check_amount
from ..prune import family_of
from ..registry import accepted, make
from ..runs.intervals import Interval, read_intervals
from ..runs.settings import Settings
from ..runs.store import UNPRUNED, read_result, write, write_text
from ..runs.sweep import Listener, Step, ignore
from .finish import level, price
from .images import MACS, ImageExam
from .run import shared_folder
from .search import difference
from .setup import Wanted, check_wanted, open_all
from .space import Space, Stack, allowed, vision_space
from .tune import facts

IMAGE = "image"
KEEP = (0.7, 0.4)
USUAL = "col_ln"


@dataclass(frozen=True)
class SiteRow:
    """One recipe with a single site. place: "image", or the block's number; quality and change are fractions; keep: share kept."""

    recipe: str
    method: str
    place: str
    keep: float
    quality: Interval
    change: Interval | None
    cost: float
    speedup: float

    def __str__(self) -> str:
        move = f", {self.change} points" if self.change else ""
        return f"{self.recipe}: {100 * self.quality.value:.1f}%{move}, speed-up {self.speedup:.2f}"

    @staticmethod
    def from_dict(data: dict[str, Any]) -> SiteRow:
        """Read what `asdict` made."""
        return SiteRow(**read_intervals(data, "quality", "change"))


@dataclass(frozen=True)
class Sensitivity:
    """Rows by method, share and place; the first is the unpruned model. The images are those that `tune` searches, so that those it
    reports on stay unseen. images: how many."""

    model: str
    data: str
    images: int
    fingerprints: dict[str, str]
    metric: str
    engine: str
    unit: str
    device: str
    precision: str
    batch_size: int
    seed: int
    date: str
    versions: dict[str, str]
    interval_method: str
    notes: list[str]
    skipped: list[tuple[str, str]]
    rows: list[SiteRow] = field(repr=False)

    def __str__(self) -> str:
        return (
            f"{self.model} on {self.data}: one site at a time, {self.images} images, {self.metric}, {self.device}, {self.precision}"
        )

    @property
    def series(self) -> dict[tuple[str, float], list[SiteRow]]:
        """Rows in blocks by method and share, from the first block to the last."""
        found: dict[tuple[str, float], list[SiteRow]] = {}
        for row in self.rows[1:]:
            if row.place != IMAGE:
                found.setdefault((row.method, row.keep), []).append(row)
        return found

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Sensitivity:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        rows, skipped = [SiteRow.from_dict(row) for row in data.pop("rows")], [tuple(pair) for pair in data.pop("skipped")]
        return Sensitivity(**data, rows=rows, skipped=skipped)

    @staticmethod
    def load(path: str | Path) -> Sensitivity:
        """Read sensitivity.json, or the folder that holds it."""
        return read_result(path, Sensitivity.from_json, "tune --sensitivity", "sensitivity.json")


def sensitivity(
    model: str | Loaded | nn.Module = "demo",
    data: str | Path | None = None,
    out: str | Path = "runs/tune",
    *,
    methods: Sequence[str] | None = None,
    keep: Sequence[float] = KEEP,
    split: str | None = None,
    report: str | Path | None = None,
    report_split: str | None = None,
    limit: int | None = None,
    metric: str | None = None,
    engine: str = MACS,
    latency_batch: int = 1,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    listen: Listener | None = None,
) -> Sensitivity:
    """Let tokens leave at one place at a time: the picture made smaller, then each block, with every method and share.

    methods: by default Col-Ln (else the first that fits) and a smaller picture; keep: shares kept. The other arguments, and going on
    after an interruption, are as in `tune`. Writes sensitivity.json, .html and .png into `out`. Raises PruneError before any heavy work.
    """
    for share in keep:
        check_amount("keep", share)
    if not keep:
        raise PruneError("nothing to look at: give at least one share to keep, such as 0.5")
    asked, settings = check_wanted(
        Wanted(data, split, report, report_split, limit, None, metric, engine, latency_batch), Settings(batch_size, precision, device, seed, 0)
    )  # fmt: skip
    folder, hear = Path(out).expanduser(), listen or ignore
    with shared_folder(folder):
        opened = open_all(model, asked, settings, folder, transform, classes, loss=False)
        wanted = sites(opened.study.loaded.model, vision_space(opened.study.loaded.model, methods), methods, keep)
    exam, rows = opened.exam, []
    base = outcomes((), exam)
    for number, (stack, method, place, share) in enumerate([((), "", "", 1.0), *wanted]):
        name = str(stack[-1]) if stack else UNPRUNED
        hear(Step(number, len(wanted) + 1, name))
        after = outcomes(stack, exam)
        cost, _ = price(exam, stack)
        change = difference(after, base) if stack else None
        rows.append(SiteRow(name, method, place, share, level(after), change, cost.cost, cost.speedup))
        hear(Step(number + 1, len(wanted) + 1, name, rows[-1]))
    known = facts(opened, asked, settings, exam.pieces)
    done = Sensitivity(rows=rows, **{**known, "data": known["data"]["search"], "images": len(base)})
    publish(done, folder)
    return done


def sites(
    model: nn.Module, space: Space, methods: Sequence[str] | None, keep: Sequence[float]
) -> list[tuple[Stack, str, str, float]]:
    """Every method at every place with every share, as far as the model can carry it out: the stack, method, place and share."""
    there = {method.name: (slot.name, method.method) for slot in space.slots for method in slot.methods}
    pictures = [name for name, (slot, _) in there.items() if slot == "picture"]
    blocks = [name for name in there if name not in pictures]
    usual = [*pictures, *([USUAL] if USUAL in blocks else blocks[:1])]
    depth = len(family_of(model).blocks)
    found: list[tuple[Stack, str, str, float]] = []
    for name in [name for name in methods or usual if name in there]:
        key = "layer" if "layer" in accepted(there[name][1]) else "layers"
        places: list[dict[str, str]] = [{}] if name in pictures else [{key: str(block)} for block in range(depth)]
        for share, place in itertools.product(keep, places):
            stack: Stack = (make(name, keep=share, **place),)
            if allowed(space.check, stack):
                found.append((stack, name, place.get(key, IMAGE), share))
    if not found:
        raise PruneError(f"none of {', '.join(methods or usual)} can prune one block of this model alone; name others")
    return found


def outcomes(stack: Stack, exam: ImageExam) -> list[float]:
    """Outcomes on all searched images."""
    return [outcome for piece in exam.pieces for outcome in exam.measure(stack, piece)]


def publish(done: Sensitivity, out: Path) -> None:
    """Write the files."""
    from ..pages.tuning_page import sensitivity_page

    write_text(out / "sensitivity.json", done.to_json())
    write_text(out / "sensitivity.html", sensitivity_page(done))
    write(out / "sensitivity.png", lambda part: draw(done, part))


def draw(done: Sensitivity, path: Path) -> None:
    """The picture: change of quality over the block where tokens leave, with 95% intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (method, keep), rows in done.series.items():
        moves = [row.change for row in rows if row.change is not None]
        middle = [100 * move.value for move in moves]
        spans = [[100 * (move.value - move.low) for move in moves], [100 * (move.high - move.value) for move in moves]]
        axes.errorbar([int(row.place) for row in rows], middle, yerr=spans, marker="o", capsize=3, label=f"{method}, keep {keep:g}")
    for row in done.rows[1:]:
        if row.place == IMAGE and row.change is not None:
            axes.axhline(100 * row.change.value, linestyle=":", color="grey", label=f"{row.recipe} (smaller picture)")
    axes.axhline(0, linewidth=0.8, color="black")
    axes.set(xlabel="block where tokens leave", ylabel=f"change of {done.metric}, points")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110, format="png")
