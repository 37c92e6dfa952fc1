"""Measure the rows of a comparison one after the other, keeping each as soon as it is finished."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import Folder, batches
from ..errors import PruneError
from ..load.answers import Answers, Reader, collect, judge, name_of
from ..load.models import Loaded, twin
from ..ops.schedule import show
from ..prune import prune
from ..recipe import Recipe
from ..runs.comparison import UNPRUNED, Comparison, Outcomes, Row
from ..runs.intervals import METHOD
from ..runs.store import Shelf, digest, fingerprint_data, fingerprint_model, write_text
from ..speed.macs import macs, mean_counts
from ..speed.timing import memory_method, peak_memory, race

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

READING = 0.6
"""Share of a row's work that is running all images, for the progress bar; the rest is the paired runs."""


@dataclass(frozen=True)
class Step:
    """News of a running comparison: `done` of `total` rows (with fractions), what is being done, and a row when it is finished."""

    done: float
    total: int
    text: str
    row: object | None = None
    restored: bool = False

    def __str__(self) -> str:
        return f"{self.done:.1f} of {self.total} rows: {self.text}"


Listener = Callable[[Step], None]


def ignore(step: Step) -> None:
    """Listen to nothing."""


@dataclass(frozen=True)
class Settings:
    """How rows are measured; all of it goes into the key under which they are kept."""

    batch_size: int = 32
    precision: str = "fp32"
    device: str = "cpu"
    seed: int = 0
    seconds: float = 4.0

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.precision}, {self.device}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Job:
    """A comparison whose parts have all been checked: model on its device, images, recipes, and the shelf of finished rows."""

    loaded: Loaded
    folder: Folder
    recipes: list[Recipe]
    settings: Settings
    out: Path
    shelf: Shelf

    @staticmethod
    def make(loaded: Loaded, folder: Folder, recipes: list[Recipe], settings: Settings, out: Path) -> Job:
        """The job, with the key that all its rows share."""
        versions = [sorted(versions_in_use(loaded.model).items()), device_name(settings.device), torch.get_num_threads()]
        key = digest(fingerprint_model(loaded.model), loaded.image_size, fingerprint_data(folder, True), repr(settings), versions)
        return Job(loaded, folder, recipes, settings, out, Shelf(out / "rows", key))

    @property
    def total(self) -> int:
        return len(self.recipes) + 1

    def collect(self, model: nn.Module, listen: Listener, row: int, text: str) -> Answers:
        """The model's answers to all images."""
        run = 0

        def step(images: int) -> None:
            nonlocal run
            run += images
            listen(Step(row + READING * run / len(self.folder), self.total, text))

        files = batches(self.folder, self.loaded.transform, self.settings.batch_size)
        torch.manual_seed(self.settings.seed)
        with torch.inference_mode():
            return collect(Reader(model), files, next(model.parameters()), step)

    def reference(self, listen: Listener) -> Answers:
        """The unpruned model's answers, from the shelf if they are there. Raises PruneError if no image can be read."""
        found = self.shelf.answers()
        if found is None:
            listen(Step(0, self.total, UNPRUNED))
            found = self.collect(self.loaded.model, listen, 0, UNPRUNED)
            if not found.index:
                name, reason = found.skipped[0]
                raise PruneError(f"none of the {len(self.folder)} images in {self.folder.path} can be read; {name}: {reason}")
            self.shelf.keep_answers(found)
        return found

    def run(self, reference: Answers, notes: list[str], shown: int, listen: Listener) -> Comparison:
        """All rows, those on the shelf taken from there; then the files in `out`."""
        rows = []
        batch = self.first_batch(reference)
        for index, recipe in enumerate([None, *self.recipes]):
            name = UNPRUNED if recipe is None else str(recipe)
            row = self.shelf.row(name)
            restored = row is not None
            if row is None:
                listen(Step(index, self.total, name))
                row = self.measure(recipe, reference, batch, index, listen)
                self.shelf.keep_row(row)
            listen(Step(index + 1, self.total, name, row, restored))
            rows.append(row)
        done = self.sum_up(rows, reference, notes, len(batch))
        self.publish(done, shown, listen)
        return done

    def first_batch(self, reference: Answers) -> Tensor:
        """The readable images that are timed."""
        files = batches(self.folder, self.loaded.transform, min(self.settings.batch_size, len(reference)))
        return next(iter(files))[0].to(next(self.loaded.model.parameters()))

    def measure(self, recipe: Recipe | None, reference: Answers, batch: Tensor, index: int, listen: Listener) -> Row:
        """One row: quality on all images, cost on one batch. The unpruned row is timed against itself: its spread is the noise."""
        name = UNPRUNED if recipe is None else str(recipe)
        model = self.loaded.model if recipe is None else twin(self.loaded.model)
        with torch.inference_mode(), nullcontext() if recipe is None else prune(model, recipe) as handle:
            answers = reference if recipe is None else self.collect(model, listen, index, name)
            if answers.index != reference.index:
                raise PruneError(f"the images in {self.folder.path} have changed during the run; start again")
            listen(Step(index + READING, self.total, f"{name} (timing)"))
            times = race(self.loaded.model, model, batch, self.settings.seconds)
            memory = peak_memory(model, batch, 0 if handle is None else handle.packed)
            tokens = [] if handle is None else mean_counts(handle.counts)
        found = judge(answers, reference, self.folder.labels)
        return Row(
            **name_parts(recipe),
            **{**found, "outcomes": Outcomes(**found["outcomes"])},
            tokens=tokens,
            images=len(answers),
            macs=macs(self.loaded.model, recipe, self.loaded.image_size, counts=tokens),
            images_per_second=len(batch) / times.median,
            speedup=times.speedup,
            peak_memory=memory,
        )

    def sum_up(self, rows: list[Row], reference: Answers, notes: list[str], timed: int) -> Comparison:
        """The rows with everything that has to be known about how they came about."""
        settings = self.settings
        return Comparison(
            model=self.loaded.name,
            data=str(self.folder.path) if self.loaded.name != "demo" else self.folder.path.name,
            data_fingerprint=fingerprint_data(self.folder),
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
            skipped=reference.skipped,
            images=[name_of(self.folder, self.folder.paths[place]) for place in reference.index],
            rows=rows,
        )

    def publish(self, done: Comparison, shown: int, listen: Listener) -> None:
        """Write results.json, results.csv and report.html."""
        from ..look.gallery import gallery
        from ..pages.report import report

        listen(Step(self.total, self.total, "drawing the report"))
        write_text(self.out / "results.json", done.to_json())
        write_text(self.out / "results.csv", done.to_csv())
        pictures = gallery(self.loaded, self.folder, done, self.recipes, shown)
        write_text(self.out / "report.html", report(done, pictures))


def name_parts(recipe: Recipe | None) -> dict[str, Any]:
    """The fields of a Row that say what it is about."""
    import json

    if recipe is None:
        return {"recipe": UNPRUNED, "label": UNPRUNED, "budget": "", "layers": "", "definition": None}
    values = dict(recipe.params)
    word = recipe.schedule.word
    rest = [f"{name}={show(values[name])}" for name in recipe.shown if name not in (word, "layers")]
    return {
        "recipe": str(recipe),
        "label": " ".join([recipe.name, *rest]),
        "budget": f"{word}={show(values[word])}" if word else "",
        "layers": show(values.get("layers", "")),
        "definition": json.loads(recipe.to_json()),
    }


def versions_in_use(model: nn.Module) -> dict[str, str]:
    """Versions of Python, this library, torch and the framework that the model comes from."""
    from .. import __version__

    found = {"python": platform.python_version(), "sparsight": __version__, "torch": str(torch.__version__)}
    home = type(model).__module__.partition(".")[0]
    version = getattr(sys.modules.get(home), "__version__", None)
    return found | ({home: str(version)} if version else {})


def device_name(device: str) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{device} ({platform.machine()})"
