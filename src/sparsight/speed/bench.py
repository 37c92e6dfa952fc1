"""bench(...) -> Bench: latency and throughput of a model, pruned and unpruned in turn, engine by engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.reading import Source, Transform, by_threads
from ..data.sources import open_source
from ..demo import demo_images
from ..errors import PruneError
from ..load.answers import check_finite
from ..load.models import Loaded, at_size, open_model, twin
from ..prune import Handle, family_of, plan_sites, prune, resolve
from ..recipe import Recipe
from ..runs.comparison import UNPRUNED
from ..runs.settings import PRECISIONS, Settings, check_settings, device_name, versions_in_use
from ..runs.store import ResultStore, claim, digest, fingerprint_model, release, write_text
from ..runs.sweep import THREADS, Listener, RowJob, ignore, run_rows
from .bench_result import Bench, BenchRow, Timing
from .compile import Compiled, check_engine, compile
from .macs import macs, mean_counts
from .timing import memory_method, peak_memory, race, site_share

USUAL = ("class_attention", "col_ln", "evit", "tome")
BUDGETS = ("keep=0.7,layers=3/6/9", "keep=0.5,layers=3/6/9")
BATCHES = (1, 8, 32)
QUICK_BATCHES = (1, 8)
QUICK_RECIPES = ("class_attention:keep=0.7", "col_ln:keep=0.7", "col_ln:keep=0.5")

BACKENDS = {
    "eager": "the model as it is",
    "compile": "torch.compile, that is sparsight.compile(engine='inductor')",
    "onnxruntime": "sparsight.compile(engine='onnxruntime')",
    "onnxruntime-int8": "the same with int8 weights in the matrix products",
    "openvino": "sparsight.compile(engine='openvino')",
}
ENGINES = {"compile": "inductor", "onnxruntime": "onnxruntime", "onnxruntime-int8": "onnxruntime", "openvino": "openvino"}
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Names of OpenVINO's precisions."""


def bench(
    model: str | Loaded | nn.Module = "demo",
    recipes: Sequence[str | Recipe] = (),
    out: str | Path = "runs/bench",
    *,
    transform: Transform | None = None,
    backends: Sequence[str] = ("eager",),
    precisions: Sequence[str] = ("fp32",),
    batch_sizes: Sequence[int] = (),
    data: str | Path | None = None,
    seconds: float | None = None,
    quick: bool = False,
    device: str = "auto",
    listen: Listener | None = None,
) -> Bench:
    """Time every recipe in every engine (precision x backend) beside the unpruned model in the same engine; write results into `out`.

    model, transform: see `open_model`. recipes: by default four methods at two budgets. data: see `open_source`, by default the embedded images. seconds: time for the
    paired runs at one batch size, after up to three seconds of each to warm up. quick: fewer recipes, batches and runs, about two minutes on two cores.
    The forward alone is timed, on images that lie on the device. Called again with the same arguments it goes on after the last
    finished row. Raises PruneError before any heavy work.
    """
    wanted = spell(recipes, quick)
    sizes = sorted(set(batch_sizes or (QUICK_BATCHES if quick else BATCHES)))
    lasting = seconds if seconds is not None else 1.0 if quick else 4.0
    found = [check_settings(Settings(sizes[0], precision, device, 0, lasting), 0) for precision in dict.fromkeys(precisions)]
    backends = ["compile" if name == "inductor" else name for name in backends]
    check_backends(backends, list(precisions), found[0].device, wanted)
    source = open_source(demo_images() if data is None else data, limit=sizes[-1])
    made = claim(Path(out).expanduser())
    try:
        loaded = at_size(open_model(model, transform), source.size if transform is None else None)
        family = family_of(loaded.model)
        for recipe in wanted:
            plan_sites(family, recipe)
        images = read(source, loaded, sizes[-1])
        with torch.inference_mode():
            check_finite(loaded.model(images[:1]), loaded.name)
        job = Job.make(loaded, images, wanted, pairs(found, backends), sizes, found[0], Path(out).expanduser())
    except PruneError:
        release(made)
        raise
    return job.run(listen or ignore)


def spell(recipes: Sequence[str | Recipe], quick: bool) -> list[Recipe]:
    """The recipes, each once; the usual ones if there are none."""
    usual = QUICK_RECIPES if quick else [f"{name}:{budget}" for budget in BUDGETS for name in USUAL]
    return list({str(found): found for found in (resolve(recipe, {}) for recipe in recipes or usual)}.values())


def check_backends(backends: Sequence[str], precisions: Sequence[str], device: str, recipes: Sequence[Recipe]) -> None:
    """Raise a PruneError for names that are not known and combinations that cannot run."""
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown:
        raise PruneError(f"backend {', '.join(unknown)} is not known; choose {', '.join(BACKENDS)}")
    for name in backends:
        if name in ("eager", "compile"):
            continue
        check_engine(ENGINES[name], None)
        if name != "openvino" and "fp32" not in precisions:
            raise PruneError(f"{name} runs fp32 files; add fp32 to the precisions, or leave it out")
        if device != "cpu":
            raise PruneError(f"{name} is timed on the CPU only; give device=cpu, or leave it out")
        for recipe in recipes:
            if recipe.adaptive:
                raise PruneError(
                    f"{recipe} keeps another number of tokens in every image, which {name} cannot hold; leave one of them out"
                )


def pairs(settings: Sequence[Settings], backends: Sequence[str]) -> list[tuple[str, str]]:
    """Engines, each once: every backend in every precision that it knows."""
    names = [(found.precision, backend) for found in settings for backend in dict.fromkeys(backends)]
    return [(precision, backend) for precision, backend in names if precision == "fp32" or not backend.startswith("onnx")]


def read(source: Source, loaded: Loaded, count: int) -> Tensor:
    """`count` images [B, 3, H, W]; the source's are repeated if they are fewer."""
    groups = by_threads(source.refs(lambda _place: True), loaded.transform, count, THREADS)
    found = [group.images for group in groups if group.images is not None]
    if not found:
        raise PruneError(f"none of the {source.total} images in {source.title} can be read")
    images = torch.cat(found)
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


@dataclass(frozen=True, eq=False)
class Job:
    """A measurement whose parts have all been checked."""

    loaded: Loaded
    images: Tensor
    recipes: list[Recipe]
    engines: list[tuple[str, str]]
    sizes: list[int]
    settings: Settings
    out: Path
    store: ResultStore

    @staticmethod
    def make(
        loaded: Loaded, images: Tensor, recipes: list[Recipe], engines: list[tuple[str, str]], sizes: list[int],
        settings: Settings, out: Path,
    ) -> Job:  # fmt: skip
        """The job, with the key that all its rows share."""
        versions = [sorted(versions_in_use(loaded.model).items()), device_name(settings.device), torch.get_num_threads()]
        key = digest(fingerprint_model(loaded.model), list(images.shape), sizes, repr(replace(settings, precision="")), versions)
        return Job(loaded, images, recipes, engines, sizes, settings, out, ResultStore(out / "rows", key))

    def run(self, listen: Listener) -> Bench:
        """All rows, those in the store taken from there; then the files in `out`."""
        total = len(self.engines) * (len(self.recipes) + 1)
        done = self.sum_up(run_rows(self.rows(), total, self.store, BenchRow.from_dict, listen))
        self.publish(done)
        return done

    def rows(self) -> Iterator[RowJob[BenchRow]]:
        """The rows to be measured, engine by engine; an engine's unpruned model is made when its first row needs it."""
        whole = macs(self.loaded.model, None, self.loaded.image_size)
        for precision, backend in self.engines:
            base = cache(partial(self.engine, None, precision, backend))
            for recipe in [None, *self.recipes]:
                name = f"{UNPRUNED if recipe is None else recipe}, {precision}, {backend}"
                yield RowJob(name, partial(self.measure, recipe, base, whole))
            torch.compiler.reset()

    def engine(self, recipe: Recipe | None, precision: str, backend: str) -> Engine:
        """The model, pruned, on its device and in its precision, in the engine of the backend."""
        cast = precision != "fp32" and backend != "openvino"
        model = copy.deepcopy(self.loaded.model) if cast or self.settings.device != "cpu" else twin(self.loaded.model)
        model = model.to(self.settings.device, PRECISIONS[precision] if cast else None).eval()
        # what a learned method has learned does not change its speed
        handle = None if recipe is None else prune(model, recipe, weights="random" if recipe.weights and not recipe.file else None)
        if backend == "eager":
            return Engine(precision, backend, model, handle)
        images = self.images[: self.sizes[0]].to(next(model.parameters()))
        hint = "int8" if backend.endswith("int8") else HINTS[precision] if backend == "openvino" else None
        return Engine(precision, backend, compile(model, images, ENGINES[backend], precision=hint, batch_sizes=self.sizes), None)

    def measure(
        self, recipe: Recipe | None, unpruned: Callable[[], Engine], whole: int, step: Callable[[float], object]
    ) -> BenchRow:
        """One row: all batch sizes, then what can be seen inside."""
        base = unpruned()
        mine = base if recipe is None else self.engine(recipe, base.precision, base.backend)
        images = self.images.to(self.settings.device, torch.float32 if base.backend == "openvino" else PRECISIONS[base.precision])
        timings = []
        for index, size in enumerate(self.sizes):
            with torch.inference_mode() if base.backend == "eager" else nullcontext():
                found = race(base.run, mine.run, images[:size], self.settings.seconds)
            timings.append(Timing(size, found.second, found.first))
            step((index + 1) / (len(self.sizes) + 1))
        inside = mine.look(images)
        tokens = mean_counts(mine.counts)
        work = macs(self.loaded.model, recipe, self.loaded.image_size, counts=tokens)
        return BenchRow(
            UNPRUNED if recipe is None else str(recipe), base.precision, base.backend, tokens, work, whole / work, timings, *inside
        )

    def sum_up(self, rows: list[BenchRow]) -> Bench:
        """The rows with everything that has to be known about how they came about."""
        return Bench(
            model=self.loaded.name,
            image_size=self.loaded.image_size,
            batches=self.sizes,
            seconds=self.settings.seconds,
            device=device_name(self.settings.device),
            threads=torch.get_num_threads(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions_in_use(self.loaded.model),
            memory_method=memory_method(self.settings.device),
            notes=[],
            rows=rows,
        )

    def publish(self, done: Bench) -> None:
        """Write results.json and report.html."""
        from ..pages.bench_report import bench_report

        write_text(self.out / "results.json", done.to_json())
        write_text(self.out / "report.html", bench_report(done))


@dataclass(frozen=True, eq=False)
class Engine:
    """A way to run the model: itself with its handle, or compiled."""

    precision: str
    backend: str
    run: nn.Module | Compiled
    handle: Handle | None

    @property
    def counts(self) -> list[Any]:
        """Tokens after each site in the last forward."""
        if isinstance(self.run, Compiled):
            return self.run.counts
        return [] if self.handle is None else self.handle.counts

    def look(self, images: Tensor) -> tuple[int | None, float | None]:
        """Peak memory, and the sites' share of their blocks' time; None where nothing can be seen."""
        if isinstance(self.run, Compiled):
            return None, None
        with torch.inference_mode():
            return peak_memory(
                self.run, images
            ), None if self.handle is None or self.handle.recipe.where == "image" else site_share(self.run, self.handle, images)
