"""Measure a comparison: answers on all images, then the cost of every recipe; each chunk and row is kept when it is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.reading import Source, by_threads
from ..load.answers import Reader, ranked
from ..load.models import Loaded, twin
from ..ops.schedule import show
from ..prune import Handle
from ..recipe import Recipe
from ..runs.comparison import Comparison, Outcomes, Row, group_of
from ..runs.intervals import METHOD
from ..runs.settings import Settings, device_name, versions_in_use
from ..runs.store import UNPRUNED, Chunk, write_text
from ..runs.sweep import Listener, RowJob, Step, Sweep, pruned, run_rows
from ..speed.timing import memory_method, peak_memory, race
from .accuracy import judge, note_of
from .study import Study

READING = 0.6
"""Share of the work that is running all images, for the progress bar; the rest is the paired runs."""
PART = "images"


@dataclass(eq=False)
class Question:
    """Asks for the highest classes, and for the cosine of the pooled features with the unpruned model's.

    base: a copy of the model that nobody prunes; it answers where the unpruned answers to a batch are from an earlier run.
    """

    reader: Reader
    base: Reader
    images: Tensor | None = field(default=None, repr=False)
    reference: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)

    def __call__(self, images: Tensor, handle: Handle | None) -> Mapping[str, Tensor]:
        logits, pooled = self.reader(images)
        if handle is None or self.images is not images:
            self.images, self.reference = images, pooled if handle is None else self.base(images)[1]
        cosine = torch.nn.functional.cosine_similarity(pooled.double(), self.reference.double(), dim=1)
        return {"cosine": cosine, **({} if logits is None else ranked(logits))}


@dataclass(frozen=True, eq=False)
class Job:
    """A comparison whose parts have all been checked: model on its device, images, recipes, and the store of finished work.

    beside: the groups in which each baseline stands.
    """

    study: Study
    settings: Settings
    sweep: Sweep
    out: Path
    beside: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def loaded(self) -> Loaded:
        return self.study.loaded

    @property
    def source(self) -> Source:
        return self.study.source

    def run(self, shown: int, listen: Listener) -> Comparison:
        """All answers, then all rows; then the files in `out`."""
        total = len(self.sweep.recipes)

        def reading(step: Step) -> None:
            listen(Step(READING * total * (step.done / step.total if step.total else 0), total, "running all images"))

        def timing(step: Step) -> None:
            listen(Step(READING * total + (1 - READING) * step.done, total, step.text, step.row, step.restored))

        answers = self.sweep.run({PART: self.source}, reading)[PART]
        batch = self.first_batch(answers[0])
        jobs = self.rows(answers, batch)
        rows = run_rows(jobs, total, self.sweep.store, Row.from_dict, timing)
        notes = self.study.notes + [note_of(row.recipe, row.not_finite, row.images) for row in rows]
        done = self.sum_up(rows, answers[0], [note for note in notes if note], len(batch))
        self.publish(done, answers[0], shown, listen)
        return done

    def first_batch(self, reference: Chunk) -> Tensor:
        """The first readable images, which are timed."""
        wanted = set(reference.places[: self.settings.batch_size])
        last = max(wanted)
        groups = by_threads(self.source.refs(wanted.__contains__), self.loaded.transform, last + 1, threads=1)
        images = torch.cat([group.images for group in groups if group.images is not None])
        return images.to(next(self.loaded.model.parameters()))

    def rows(self, answers: list[Chunk], batch: Tensor) -> Iterator[RowJob[Row]]:
        """The rows to be measured, by name."""
        for recipe, chunk in zip(self.sweep.recipes, answers, strict=True):
            name = UNPRUNED if recipe is None else str(recipe)
            yield RowJob(name, partial(self.measure, recipe, chunk, answers[0], batch))

    def measure(
        self, recipe: Recipe | None, chunk: Chunk, reference: Chunk, batch: Tensor, progress: Callable[[float], object]
    ) -> Row:
        """One row: quality from the answers, cost on one batch. The unpruned row is timed against itself: its spread is the noise."""
        progress(0)
        model = self.loaded.model if recipe is None else twin(self.loaded.model)
        with torch.inference_mode(), pruned(model, recipe):
            times = race(self.loaded.model, model, batch, self.settings.seconds)
            memory = peak_memory(model, batch)
        tokens = [] if recipe is None else [max(1, round(n)) for n in chunk.columns["tokens"].double().mean(dim=0).tolist()]
        judged = judge(chunk, reference)
        cosine = torch.where(chunk.columns["finite"], chunk.columns["cosine"], 0.0)
        shares = judged.intervals(None if recipe is None else judge(reference, reference))
        top = chunk.columns.get("top")
        return Row(
            **name_parts(recipe),
            tokens=tokens,
            images=len(chunk),
            top1=shares["top1"].value if shares["top1"] else None,
            top1_change=shares["top1_change"],
            top5=shares["top5"].value if shares["top5"] else None,
            top5_change=shares["top5_change"],
            agreement=shares["agreement"],
            cosine=float(cosine.mean()),
            macs=self.study.macs(recipe, tokens),
            images_per_second=len(batch) / times.median,
            speedup=times.speedup,
            peak_memory=memory,
            not_finite=judged.not_finite,
            outcomes=Outcomes(
                predicted=None if top is None else top[:, 0].tolist(),
                top1=judged.top1,
                top5=judged.top5,
                agree=judged.agree,
                cosine=[round(value, 6) for value in cosine.tolist()],
            ),
        )

    def sum_up(self, rows: list[Row], reference: Chunk, notes: list[str], timed: int) -> Comparison:
        """The rows with everything that has to be known about how they came about."""
        settings = self.settings
        return Comparison(
            model=self.loaded.name,
            data=self.source.title if self.loaded.name != "demo" else Path(self.source.title).name,
            data_fingerprint=self.source.fingerprint(times=False),
            image_size=self.loaded.image_size,
            device=device_name(settings.device),
            threads=torch.get_num_threads(),
            precision=settings.precision,
            batch_size=settings.batch_size,
            timed_batch=timed,
            seed=settings.seed,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions_in_use(self.loaded.model),
            interval_method=METHOD,
            memory_method=memory_method(settings.device),
            notes=notes,
            skipped=[(name, why) for _, name, why in reference.skipped],
            images=reference.names,
            rows=[replace(row, beside=self.beside.get(row.recipe, [])) for row in rows],
        )

    def publish(self, done: Comparison, reference: Chunk, shown: int, listen: Listener) -> None:
        """Write results.json, results.csv and report.html."""
        from ..look.gallery import gallery
        from ..pages.report import report

        listen(Step(len(done.rows), len(done.rows), "drawing the report"))
        write_text(self.out / "results.json", done.to_json())
        write_text(self.out / "results.csv", done.to_csv())
        recipes = [recipe for recipe in self.sweep.recipes if recipe is not None]
        places = dict(zip(reference.names, reference.places, strict=True))
        pictures = gallery(self.loaded, self.source, places, done, recipes, shown)
        write_text(self.out / "report.html", report(done, pictures))


def name_parts(recipe: Recipe | None) -> dict[str, Any]:
    """The fields of a Row that say what it is about."""
    if recipe is None:
        return {"recipe": UNPRUNED, "label": UNPRUNED, "budget": "", "layers": "", "definition": None}
    values = dict(recipe.params)
    word = recipe.schedule.word
    budget, layers = group_of(recipe)
    rest = [f"{name}={show(values[name])}" for name in recipe.shown if name not in (word, "layers")]
    return {
        "recipe": str(recipe),
        "label": " ".join([recipe.name, *rest]),
        "budget": budget,
        "layers": layers,
        "definition": json.loads(recipe.to_json()),
    }
