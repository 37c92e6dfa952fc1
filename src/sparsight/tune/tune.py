"""tune(...) -> Tuning: search the recipe that a model and its images ask for, on one part of the images, and report on the other."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn

from ..data.reading import Transform
from ..errors import PruneError
from ..load.models import Loaded
from ..recipe import Recipe
from ..runs.intervals import METHOD
from ..runs.settings import Settings, device_name, versions_in_use
from ..runs.sweep import Listener, Step, ignore
from .finish import stacks
from .images import MACS
from .parts import Part
from .result import Tuning
from .run import Order, check_trials, run, shared_folder
from .setup import Opened, Wanted, check_wanted, open_all, refuse_impossible
from .space import vision_space
from .targets import make_target
from .trials import need, open_storage


def tune(
    model: str | Loaded | nn.Module = "demo",
    data: str | Path | None = None,
    out: str | Path = "runs/tune",
    *,
    report: str | Path | None = None,
    split: str | None = None,
    report_split: str | None = None,
    limit: int | None = None,
    report_limit: int | None = None,
    speedup: float | None = None,
    loss: float | None = None,
    ms: float | None = None,
    metric: str | None = None,
    engine: str = MACS,
    latency_batch: int = 1,
    methods: Sequence[str] | None = None,
    recipes: Sequence[str | Recipe] = (),
    trials: int = 60,
    storage: str | None = None,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    strict: bool = True,
    listen: Listener | None = None,
) -> Tuning:
    """Search size of the picture, method, order, blocks, share kept at each, score, selector and reducer for a model and its images.

    model, transform, classes: see `open_model`. data, split, limit: the images to search on (see `open_source`); report,
    report_split, report_limit: those to report on; without them one half of `data` is searched and the other reported. Recipes are judged by accuracy, without
    labels by agreement with the unpruned model (metric). Target: speedup at least, loss in points at most, ms at most; nothing is a
    loss of a point. engine: "macs" counts multiply-accumulates, an engine of `bench` measures milliseconds on `latency_batch` images.
    methods: those to search, by default all that fit. recipes: of one's own, reported beside what is found. trials: that have to be
    finished, by all workers together: the same call in other processes or on other machines helps, where `out` or `storage` (a URL of
    Optuna's) is shared, and a call after a crash goes on. Writes results, page, recipe and evidence into `out`. Raises PruneError before
    any heavy work; at the end also where no recipe meets the target, unless strict is False: the nearest is then the chosen one.
    """
    need()
    order = Order(
        make_target(speedup, loss, ms, engine), check_trials(trials), Path(out).expanduser(), storage, seed, strict, listen or ignore
    )  # fmt: skip
    asked, settings = check_wanted(
        Wanted(data, split, report, report_split, limit, report_limit, metric, engine, latency_batch), Settings(batch_size, precision, device, seed, 0)
    )  # fmt: skip
    with shared_folder(order.out):
        if storage is not None:
            open_storage(storage, order.out)  # to complain before anything is measured
        opened = open_all(model, asked, settings, order.out, transform, classes, loss is not None)
        space = vision_space(opened.study.loaded.model, methods)
        given = stacks(recipes, space.check)
        refuse_impossible(order.target, space, opened.exam)
        order.listen(Step(0, trials, "the unpruned model", unit="trials"))
        base = [outcome for piece in opened.exam.pieces for outcome in opened.exam.measure((), piece)]
        if not base:
            raise PruneError(f"none of the {opened.search.total} images of {opened.search.title} can be read and judged")
    return run(
        order, space, opened.exam, lambda stack: opened.exam.measure(stack, opened.report), base, given, opened.key,
        lambda: facts(opened, asked, settings, [*opened.exam.pieces, opened.report]),
    )  # fmt: skip


def facts(opened: Opened, asked: Wanted, settings: Settings, parts: Sequence[Part]) -> dict[str, Any]:
    """What a result says about how it came about. parts: the images that were read."""
    loaded, search, report = opened.study.loaded, opened.search, opened.report
    unread = [opened.exam.unpruned(part).skipped for part in parts]
    return {
        "model": loaded.name,
        "data": {"search": search.title, "report": report.title},
        "images": {"search": len(search.places), "report": len(report.places)},
        "fingerprints": opened.prints,
        "metric": opened.exam.metric,
        "engine": asked.engine,
        "unit": opened.exam.costs.unit,
        "device": device_name(settings.device),
        "precision": settings.precision,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions_in_use(loaded.model) | {"optuna": str(need().__version__)},
        "interval_method": METHOD,
        "notes": opened.notes,
        "skipped": [(name, why) for part in unread for _, name, why in part],
    }
