"""evaluate(...) -> Evaluation: accuracy of a model, unpruned and under recipes, on a data set of any size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn

from ..data.presets import find_preset
from ..data.reading import Transform
from ..demo import demo_images
from ..load.models import Loaded
from ..load.zero_shot import Dual, Template
from ..pages.evaluation_page import evaluation_page
from ..recipe import Recipe
from ..runs.intervals import METHOD
from ..runs.settings import Settings, check_settings, device_name, versions_in_use
from ..runs.store import UNPRUNED, Chunk, write_text
from ..runs.sweep import Listener, Sweep, ignore
from ..runs.workers import Workers
from .accuracy import judge
from .beside import beside as place_beside
from .beside import check_beside
from .probes import classify
from .result import Evaluation, Score, write_predictions
from .study import Data, Study, check_pace, check_recipes, make_sweep, prepare, reserved


def evaluate(
    model: str | Loaded | Dual | nn.Module = "demo",
    data: str | Path | None = None,
    recipes: Sequence[str | Recipe] = (),
    out: str | Path = "runs/evaluate",
    *,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    mode: str = "classify",
    preset: str | None = None,
    split: str | None = None,
    train: str | Path | None = None,
    limit: int | None = None,
    beside: Sequence[str] = (),
    equal: Sequence[str] = ("macs",),
    batch_size: int = 32,
    workers: int = 0,
    chunk: int = 256,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    k: int = 20,
    templates: Sequence[Template] | None = None,
    listen: Listener | None = None,
) -> Evaluation:
    """Accuracy of the unpruned model and of every recipe; writes results.json, report.html and the predictions for every image into `out`.

    model, transform, classes: see `open_model`; in zero-shot a name for `load_dual` or what it returned. data, split, limit: see
    `open_source`. preset: see `PRESETS`. mode: "classify", "zero-shot" (class names in `templates`), "knn" (`k` neighbours) or "probe", both on features of `train`. beside, equal: baselines beside the recipes, as in `compare`.
    workers: processes that read images, 0 for threads. Answers are kept every `chunk` images: called again it goes on from there, with
    any number of workers or of processes started by accelerate or torchrun. Raises PruneError.
    """
    pace, settings = check_pace(batch_size, chunk, workers, k), check_settings(Settings(batch_size, precision, device, seed, 0), 0)
    wanted = Data(data, split, limit, train, find_preset(preset) if preset else None)
    names = check_beside(beside, equal)
    processes, folder = Workers.join(settings.device), Path(out).expanduser()
    settings = replace(settings, device=processes.device)
    with reserved(folder, processes):
        study = prepare(model, wanted, mode, settings, templates, transform, classes)
        chosen = check_recipes(recipes, study.loaded.model)
        others = place_beside(study.loaded.model, chosen, *names, study.loaded.image_size, study.forward)
        chosen, study = [*chosen, *others.recipes], replace(study, notes=[*study.notes, *others.notes])
        sweep = make_sweep(study, chosen, pace, settings, processes, folder)
        return Job(study, mode, preset, k, settings, sweep).run(folder, listen or ignore)


@dataclass(frozen=True, eq=False)
class Job:
    """An evaluation whose parts have all been checked."""

    study: Study
    mode: str
    preset: str | None
    k: int
    settings: Settings
    sweep: Sweep

    def run(self, out: Path, listen: Listener) -> Evaluation:
        """All images; then, in the first process, the results, which all processes get."""
        parts = {"train": self.study.train, "test": self.study.source}
        answers = self.sweep.run({part: source for part, source in parts.items() if source is not None}, listen)
        text = self.finish(answers, out).to_json() if answers else None
        return Evaluation.from_json(self.sweep.processes.share(text))

    def finish(self, answers: dict[str, list[Chunk]], out: Path) -> Evaluation:
        """Write the files."""
        tests = answers["test"]
        if "train" in answers:
            tests = [classify(self.mode, *pair, self.study.classes, self.k) for pair in zip(answers["train"], tests, strict=True)]
        scores = [self.score(recipe, chunk, tests[0]) for recipe, chunk in zip(self.sweep.recipes, tests, strict=True)]
        done = self.sum_up(scores, tests[0])
        write_predictions(out, [score.recipe for score in scores], tests, self.study.names)
        write_text(out / "results.json", done.to_json())
        write_text(out / "report.html", evaluation_page(done))
        return done

    def score(self, recipe: Recipe | None, chunk: Chunk, reference: Chunk) -> Score:
        """One recipe against the unpruned model."""
        tokens = chunk.columns["tokens"].float().mean(dim=0).tolist() if recipe is not None else []
        judged = judge(chunk, reference)
        return Score(
            recipe=UNPRUNED if recipe is None else str(recipe),
            definition=None if recipe is None else definition(recipe),
            tokens=tokens,
            images=len(chunk),
            labelled=sum(label is not None for label in chunk.labels),
            macs=self.study.macs(recipe, tokens),
            not_finite=judged.not_finite,
            **judged.intervals(None if recipe is None else judge(reference, reference)),
        )

    def sum_up(self, scores: list[Score], reference: Chunk) -> Evaluation:
        """The scores with everything that has to be known about how they came about."""
        study, settings = self.study, self.settings
        return Evaluation(
            model=study.loaded.name,
            mode=f"knn, k={self.k}" if self.mode == "knn" else self.mode,
            data=study.source.title if study.source.title != str(demo_images()) else "the demo images",
            data_fingerprint=self.sweep.store.key,
            preset=self.preset,
            images=len(reference),
            classes=study.classes,
            image_size=study.loaded.image_size,
            device=device_name(settings.device),
            processes=self.sweep.processes.size,
            precision=settings.precision,
            batch_size=settings.batch_size,
            seed=settings.seed,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions_in_use(study.loaded.model),
            interval_method=METHOD,
            notes=[note for note in (*study.notes, *(score.note for score in scores)) if note],
            skipped=[(name, why) for _, name, why in reference.skipped],
            scores=scores,
        )


def definition(recipe: Recipe) -> dict[str, Any]:
    """The recipe in its JSON form."""
    found: dict[str, Any] = json.loads(recipe.to_json())
    return found
