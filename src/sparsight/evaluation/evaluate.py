"""evaluate(...) -> Evaluation: accuracy of a model, unpruned and under recipes, on a data set of any size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..data.presets import find_preset
from ..data.sources import Source, mark
from ..errors import PruneError
from ..load.answers import TOP, hits
from ..load.models import Loaded, demo_images
from ..load.zero_shot import Dual, Template
from ..recipe import Recipe
from ..runs.chunks import FOLDER, Chunk, Shelf
from ..runs.comparison import UNPRUNED
from ..runs.intervals import METHOD, Interval, paired, share
from ..runs.store import claim, digest, fingerprint_model, release, write_text
from ..runs.sweep import Pace, Sweep, pruned
from ..runs.workers import Crew
from .compare import check_settings
from .measure import Settings, device_name, versions_in_use
from .predictions import write_predictions
from .probes import classify
from .result import Evaluation, Score
from .study import Data, Study, check_recipes, look_of, prepare

Listener = Callable[[int, int | None, str], None]
"""Hears (images done, images in all or None for a stream, what is being done)."""


def ignore(_done: int, _total: int | None, _text: str) -> None:
    """Listen to nothing."""


def evaluate(
    model: str | Loaded | Dual = "demo",
    data: str | Path | None = None,
    recipes: Sequence[str | Recipe] = (),
    out: str | Path = "runs/evaluate",
    *,
    mode: str = "classify",
    preset: str | None = None,
    split: str | None = None,
    train: str | Path | None = None,
    limit: int | None = None,
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
    """Accuracy of the unpruned model and of every recipe; writes results.json and the predictions for every image into `out`.

    model: a name for `load_model` (`load_dual` in zero-shot), or a loaded one. data, split, limit: see `open_source`. preset: see
    `PRESETS`. mode: "classify", "zero-shot" (class names in `templates`), "knn" (`k` neighbours) or "probe", both on features of `train`.
    workers: processes that read images, 0 for threads. Answers are kept every `chunk` images: called again it goes on from there, with
    any number of workers or of processes started by accelerate or torchrun. Raises PruneError.
    """
    pace, settings = check_pace(batch_size, chunk, workers, k), check_settings(Settings(batch_size, precision, device, seed, 0), 0)
    wanted = Data(data, split, limit, train, find_preset(preset) if preset else None)
    crew, folder = Crew.join(settings.device), Path(out).expanduser()
    settings = replace(settings, device=crew.device)
    with reserved(folder, crew):
        study = prepare(model, wanted, mode, settings, templates)
        chosen = check_recipes(recipes, study.loaded.model)
    sweep = make_sweep(study, chosen, pace, settings, crew, folder)
    return Job(study, mode, preset, k, settings, sweep).run(folder, listen or ignore)


@contextmanager
def reserved(out: Path, crew: Crew) -> Iterator[None]:
    """The first process makes OUT, and takes it back if what follows finds a fault."""
    made = claim(out, FOLDER) if crew.rank == 0 else []
    try:
        yield
    except PruneError:
        release(made)
        raise


def check_pace(batch_size: int, chunk: int, workers: int, k: int = 1) -> Pace:
    """How images are read; a PruneError for what cannot be."""
    if workers < 0 or chunk < 1 or k < 1:
        raise PruneError(f"workers={workers}, chunk={chunk}, k={k}: workers must not be negative, the others at least 1")
    return Pace(batch_size, chunk, workers)


def make_sweep(study: Study, recipes: list[Recipe], pace: Pace, settings: Settings, crew: Crew, out: Path) -> Sweep:
    """The sweep, with the key that all processes share: that of the first one, as times of files differ between disks."""
    loaded = study.loaded
    facts = [settings.batch_size, pace.stride, settings.precision, torch.device(settings.device).type, settings.seed]
    versions = sorted(versions_in_use(loaded.model).items())
    sources = [mark(source) for source in (study.train, study.source) if source is not None]
    own = digest(fingerprint_model(loaded.model), look_of(loaded), sources, facts, versions, study.key)
    key, total = crew.share((own, study.source.total))
    if total != study.source.total:
        raise PruneError(
            f"this process sees {study.source.total} images in {study.source.title}, the first one {total}; give all the same"
        )
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    return Sweep(loaded.model, loaded.transform, [None, *recipes], study.ask, pace, settings.seed, Shelf(out / FOLDER, key), crew)


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
        counts = {}
        for part, source in (("train", self.study.train), ("test", self.study.source)):
            if source is not None:
                counts[part] = self.read(source, part, listen)
        for part, count in counts.items():
            self.sweep.crew.bring(self.sweep.shelf.folder, self.sweep.files(part, count))
        text = self.finish(counts, out).to_json() if self.sweep.crew.rank == 0 else None
        return Evaluation.from_json(self.sweep.crew.share(text))

    def read(self, source: Source, part: str, listen: Listener) -> int:
        """One data set."""
        done, crew = 0, self.sweep.crew
        total = None if source.total is None else -(-source.total // crew.size)

        def step(images: int) -> None:
            nonlocal done
            done += images
            listen(done, total, part)

        listen(0, total, part)
        return self.sweep.run(source, part, step)

    def finish(self, counts: dict[str, int], out: Path) -> Evaluation:
        """Merge the chunks and write the files."""
        answers = self.sweep.collect("test", counts["test"])
        if not len(answers[0]):
            _, name, why = next(iter(answers[0].skipped), (0, "", "it is empty"))
            raise PruneError(f"none of the images of {self.study.source.title} can be read; {name}: {why}")
        if self.study.train is not None:
            trains = self.sweep.collect("train", counts["train"])
            answers = [classify(self.mode, *pair, self.study.classes, self.k) for pair in zip(trains, answers, strict=True)]
        scores = [self.score(recipe, chunk, answers[0]) for recipe, chunk in zip(self.sweep.recipes, answers, strict=True)]
        done = self.sum_up(scores, answers[0])
        write_predictions(out, [score.recipe for score in scores], answers)
        write_text(out / "results.json", done.to_json())
        return done

    def score(self, recipe: Recipe | None, chunk: Chunk, reference: Chunk) -> Score:
        """One recipe against the unpruned model."""
        tokens = chunk.columns["tokens"].float().mean(dim=0).tolist() if recipe is not None else []
        return Score(
            recipe=UNPRUNED if recipe is None else str(recipe),
            definition=None if recipe is None else definition(recipe),
            tokens=tokens,
            images=len(chunk),
            labelled=sum(label is not None for label in chunk.labels),
            agreement=share((chunk.columns["top"][:, 0] == reference.columns["top"][:, 0]).int().tolist()),
            macs=count_macs(self.sweep, recipe, self.study.loaded.image_size),
            **accuracy(chunk, None if recipe is None else reference),
        )

    def sum_up(self, scores: list[Score], reference: Chunk) -> Evaluation:
        """The scores with everything that has to be known about how they came about."""
        study, settings = self.study, self.settings
        return Evaluation(
            model=study.loaded.name,
            mode=f"knn, k={self.k}" if self.mode == "knn" else self.mode,
            data=study.source.title if study.source.title != str(demo_images()) else "the demo images",
            data_fingerprint=self.sweep.shelf.key,
            preset=self.preset,
            images=len(reference),
            classes=study.classes,
            image_size=study.loaded.image_size,
            device=device_name(settings.device),
            processes=self.sweep.crew.size,
            precision=settings.precision,
            batch_size=settings.batch_size,
            seed=settings.seed,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions_in_use(study.loaded.model),
            interval_method=METHOD,
            notes=[note for note in study.notes if note],
            skipped=[(name, why) for _, name, why in reference.skipped],
            scores=scores,
        )


def accuracy(chunk: Chunk, reference: Chunk | None) -> dict[str, Interval | None]:
    """top-1 and top-5 of the images that have a label, and their changes against the reference."""
    known = [place for place, label in enumerate(chunk.labels) if label is not None]
    found: dict[str, Interval | None] = dict.fromkeys(("top1", "top1_change", "top5", "top5_change"))
    if not known:
        return found
    truth = torch.tensor([chunk.labels[place] for place in known])
    for name, depth in (("top1", 1), ("top5", TOP)):
        right = hits(chunk.columns["top"][known], truth, depth)
        found[name] = share(right)
        if reference is not None:
            found[f"{name}_change"] = paired(right, hits(reference.columns["top"][known], truth, depth))
    return found


def definition(recipe: Recipe) -> dict[str, Any]:
    """The recipe in its JSON form."""
    found: dict[str, Any] = json.loads(recipe.to_json())
    return found


def count_macs(sweep: Sweep, recipe: Recipe | None, size: tuple[int, int]) -> int:
    """Multiply-accumulates of the question about one image, counted in a real forward."""
    image = torch.zeros(1, 3, *size).to(next(sweep.model.parameters()))
    with torch.no_grad(), pruned(sweep.model, recipe) as handle, FlopCounterMode(display=False) as counter:
        sweep.ask(image, handle)
    return int(counter.get_total_flops()) // 2
