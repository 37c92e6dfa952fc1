"""What a search on a vision model needs, opened and checked before anything is measured: model, images in two parts, metric, costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ..data.fingerprint import digest
from ..data.reading import Source, Transform, mark
from ..data.sources import open_source
from ..errors import PruneError
from ..evaluation.study import Data, Study, prepare
from ..load.models import Loaded, data_folder, look_of
from ..runs.settings import Settings, check_settings, versions_in_use
from ..runs.store import ResultStore, fingerprint_model
from .images import MACS, ImageExam, Latency, Macs, Metric, check_cost, first_images
from .parts import Part, halves, labels_of, rungs, whole
from .space import Space
from .targets import Target

FEW = 100
"""Images below which a search says that they are few."""
METRICS = ("accuracy", "agreement")


@dataclass(frozen=True)
class Wanted:
    """What is asked for. data, split, limit: the images to search on; report, report_split, report_limit: those to report on, by default
    one half of the others'. batch: images per forward where latency is the cost."""

    data: str | Path | None = None
    split: str | None = None
    report: str | Path | None = None
    report_split: str | None = None
    limit: int | None = None
    report_limit: int | None = None
    metric: str | None = None
    engine: str = MACS
    batch: int = 1


@dataclass(frozen=True, eq=False)
class Opened:
    """Everything that a search needs. key: of what its trials depend on, whatever the machine."""

    study: Study
    search: Part
    report: Part
    exam: ImageExam
    key: str
    prints: dict[str, str]
    notes: list[str]


def check_wanted(asked: Wanted, settings: Settings) -> tuple[Wanted, Settings]:
    """Raise PruneError for words and numbers that cannot be, before a model is loaded."""
    settings = check_settings(settings, 0)
    if asked.metric is not None and asked.metric not in METRICS:
        raise PruneError(f"metric={asked.metric!r} is not known; choose {' or '.join(METRICS)}")
    if asked.batch < 1:
        raise PruneError(f"latency_batch={asked.batch} must be 1 or more")
    engine = check_cost(asked.engine, settings.device, settings.precision)
    return replace(asked, engine=engine), settings


def open_all(
    model: str | Loaded | nn.Module,
    asked: Wanted,
    settings: Settings,
    out: Path,
    transform: Transform | None,
    classes: Sequence[str] | None,
    loss: bool,
) -> Opened:
    """Load the model and divide the images. loss: whether a loss is asked for, which is one of accuracy if nothing else is said."""
    study = prepare(model, Data(asked.data, asked.split, asked.limit), "classify", settings, None, transform, classes)
    search, report = divide(model, asked, study, settings.seed)
    metric = choose_metric(asked.metric, search, report, loss)
    loaded = study.loaded
    weights, look = fingerprint_model(loaded.model), look_of(loaded)
    facts = [settings.batch_size, settings.precision, torch.device(settings.device).type, settings.seed]
    versions = sorted(versions_in_use(loaded.model).items())
    store = ResultStore(out / "rows", digest(weights, look, mark(search.whole), mark(report.whole), facts, versions, study.key))
    if asked.engine == MACS:
        costs: Macs | Latency = Macs(study)
    else:
        costs = Latency(study, asked.engine, first_images(study, search, asked.batch), settings.precision)
    exam = ImageExam(study, rungs(search), metric, settings, store, costs)
    prints = {"model": weights, "search": search.fingerprint(times=False), "report": report.fingerprint(times=False)}
    key = digest(weights, look, prints["search"], facts, versions, study.key, metric, asked.engine, asked.batch)
    notes = [study.source.note]
    if metric == "agreement" and asked.metric is None:
        notes.append("there are no labels: what counts is agreement with the unpruned model's first class")
    few = [f"{len(part.places)} to {what} on" for part, what in ((search, "search"), (report, "report")) if len(part.places) < FEW]
    notes += [f"few images ({', '.join(few)}): what is chosen is hardly better than chance; look at the intervals"] if few else []
    return Opened(study, search, report, exam, key, prints, [note for note in notes if note])


def divide(model: str | Loaded | nn.Module, asked: Wanted, study: Study, seed: int) -> tuple[Part, Part]:
    """The images to search on and those to report on. Raises PruneError if they are the same."""
    if asked.report is None and asked.report_split is None:
        if asked.report_limit is not None:
            raise PruneError(
                "report_limit= is for images of their own to report on; give report= or report_split=, or leave it out"
            )
        return halves(study.source, seed)
    place = data_folder(model, asked.data) if asked.report is None else asked.report
    other: Source = open_source(place, asked.report_split, asked.report_limit).aligned(study.loaded.classes, study.classes)
    if other.size != study.source.size:
        raise PruneError(f"{other.title} has pictures of another size than {study.source.title}; give two of one size")
    if other.fingerprint(times=False) == study.source.fingerprint(times=False):
        raise PruneError(
            f"the images of {other.title} would be searched and reported; give others with --report, or leave it out: one half is then "
            "searched, the other reported"
        )
    return whole(study.source, seed), whole(other, seed)


def choose_metric(metric: str | None, search: Part, report: Part, loss: bool) -> Metric:
    """Accuracy where both parts have labels, else agreement. Raises PruneError where labels are needed and missing."""
    bare = next((part for part in (search, report) if all(label is None for label in labels_of(part))), None)
    if bare is None or metric == "agreement":
        return cast(Metric, metric or "accuracy")
    if metric == "accuracy" or loss:
        what = "a loss is one of accuracy" if metric is None else "accuracy needs labels"
        raise PruneError(
            f"{what}, and {bare.title} has no labels; give one folder per class, or metric=agreement: points are then of agreement "
            "with the unpruned model"
        )
    return "agreement"


def refuse_impossible(target: Target, space: Space, exam: ImageExam) -> None:
    """Raise PruneError for a speed-up that even the cheapest recipe of the space has not."""
    if target.speedup is None or not isinstance(exam.costs, Macs):
        return
    best, name = 1.0, ""
    for stack in space.cheapest():
        try:
            found = exam.cost(stack)
        except PruneError:  # so few tokens that the method has nothing to choose from
            continue
        if found is not None and found.speedup > best:
            best, name = found.speedup, " + ".join(map(str, stack))
        if best >= target.speedup:
            return
    if name:
        raise PruneError(
            f"speedup={target.speedup:g} cannot be met: the cheapest recipe that is searched, {name}, has {best:.2f} by multiply-accumulates"
        )
