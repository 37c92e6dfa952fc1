"""bench_vlm(...) -> StageBench: where a vision-language model's time and memory go, unpruned and under every recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import PruneError, shown
from ..load.shapes import check_memory
from ..load.vlms import Inputs, Prompts, Source, find_source, make_prompts
from ..prune import Handle, prune, resolve
from ..recipe import Recipe
from ..runs.comparison import UNPRUNED
from ..runs.settings import PRECISIONS, Settings, check_settings, device_name, versions_in_use
from ..runs.store import ResultStore, claim, digest, release, write_text
from ..runs.sweep import Listener, RowJob, ignore, run_rows
from .engines import need_module, on_cpu
from .export_vlm import facts_of, first_picture, grid_of
from .openvino_stages import MEMORY, STAGES, rise, time_openvino
from .openvino_vlm import OpenVinoVlm
from .stage_result import StageBench, StageRow
from .stages import Footprint, Times, count_macs, peak_memory, time_stages, vision_language
from .timing import memory_method
from .vlm_tracing import check_traceable, embedding_graph, language_graph, vision_graph

ENGINES = ("eager", "openvino")

LOOKING = 0.3
"""Share of a row's work that is counting, for the progress bar; the rest is the paired runs."""


def bench_vlm(
    model: str | None = None,
    recipes: Sequence[str | Recipe] = (),
    out: str | Path = "runs/bench-vlm",
    *,
    config: str | None = None,
    images: str | Path | None = None,
    prompt: str | None = None,
    batch_size: int = 1,
    new_tokens: int = 16,
    layers: int | None = None,
    rounds: int = 6,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    engine: str = "eager",
    listen: Listener | None = None,
) -> StageBench:
    """Time every stage of `generate` under every recipe, in turn with the unpruned model; write results and report into `out`.

    model: a folder or a Hub repository of LLaVA, LLaVA-NeXT, LLaVA-OneVision or Qwen-VL; config: a shape with random weights instead
    ("tiny", "llava-7b-shape"). images: a folder, by default noise; prompt: the text beside each image. layers: cut the language model
    to its first layers. precision "auto" is bf16 on CUDA and fp32 elsewhere. rounds: pairs of runs per row, after one to warm up.
    engine: "eager" (PyTorch) or "openvino" (the CPU, fp32; LLaVA, Qwen2-VL, Qwen2.5-VL), for the unpruned model and the recipes alike.
    Called again with the same arguments it goes on after the last finished row. Raises PruneError before any heavy work.
    """
    wanted = spell(recipes, new_tokens, rounds)
    settings = settle(batch_size, precision, device, seed)
    settings = check_engine(engine, settings, device)
    made = claim(folder := Path(out).expanduser())
    try:
        source = find_source(model, config, layers)
        for recipe in wanted:
            if engine == "openvino":
                check_traceable(source.shell, recipe)
            prune(source.shell, recipe).remove()
        prompts = make_prompts(source, images, prompt, batch_size, seed)
        check_memory(
            source.shell, source.config, settings.device, PRECISIONS[settings.precision], batch_size, prompts.length + new_tokens
        )
        if engine == "openvino":
            grid_of(source, prompts.inputs)
        job = Job.make(source, prompts, wanted, settings, new_tokens, rounds, folder, engine)
    except PruneError:
        release(made)
        raise
    return job.run(listen or ignore)


def spell(recipes: Sequence[str | Recipe], new_tokens: int, rounds: int) -> list[Recipe]:
    """The recipes, each once; a PruneError for numbers that cannot be."""
    if new_tokens < 2 or rounds < 2:
        raise PruneError(
            f"new_tokens={new_tokens}, rounds={rounds}: both must be at least 2, to time decoding and to have quartiles"
        )
    found = [resolve(recipe, {}) for recipe in recipes]
    if not found:
        raise PruneError("nothing to measure: give at least one recipe, such as divprune:tokens=64 or fastv:layer=3,keep=0.5")
    return list({str(recipe): recipe for recipe in found}.values())


def settle(batch_size: int, precision: str, device: str, seed: int) -> Settings:
    """The settings with device and precision spelled out; a PruneError for what cannot be."""
    auto = precision == "auto"
    found = check_settings(Settings(batch_size, "fp32" if auto else precision, device, seed), 0)
    bf16 = auto and found.device.startswith("cuda")
    return Settings(batch_size, "bf16", found.device, seed) if bf16 else found


def check_engine(engine: str, settings: Settings, device: str) -> Settings:
    """The settings for the engine; a PruneError for an engine that is not known, and for settings that it cannot have."""
    if engine not in ENGINES:
        raise PruneError(f"engine={shown(engine)!r} is not known; choose {', '.join(ENGINES)}")
    if engine == "eager":
        return settings
    need_module(engine)
    if device not in ("auto", "cpu") or settings.precision != "fp32":
        raise PruneError(f"engine {engine} runs on the CPU in fp32; leave device and precision out")
    return replace(settings, device="cpu")


@dataclass(frozen=True, eq=False)
class Job:
    """A measurement whose parts have all been checked. The model is loaded when the first row has to be measured."""

    source: Source
    prompts: Prompts
    recipes: list[Recipe]
    settings: Settings
    new_tokens: int
    rounds: int
    out: Path
    store: ResultStore
    engine: str = "eager"

    @staticmethod
    def make(
        source: Source,
        prompts: Prompts,
        recipes: list[Recipe],
        settings: Settings,
        new_tokens: int,
        rounds: int,
        out: Path,
        engine: str,
    ) -> Job:
        """The job, with the key that all its rows share."""
        ids = prompts.inputs["input_ids"]
        facts = [source.name, source.config.to_json_string(), weights_on_disk(source.path), prompts.images, ids.tolist()]
        versions = [sorted(versions_in_use(source.shell).items()), device_name(settings.device), torch.get_num_threads()]
        key = digest(*facts, repr(settings), new_tokens, rounds, versions, engine)
        return Job(source, prompts, recipes, settings, new_tokens, rounds, out, ResultStore(out / "rows", key), engine)

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.settings.precision]

    def run(self, listen: Listener) -> StageBench:
        """All rows, those in the store taken from there; then the files in `out`."""
        done = self.sum_up(run_rows(self.rows(), len(self.recipes) + 1, self.store, StageRow.from_dict, listen))
        self.publish(done)
        return done

    def rows(self) -> Iterator[RowJob[StageRow]]:
        """The rows to be measured; the model is loaded when the first of them needs it."""
        bench = cache(self.load)
        for recipe in [None, *self.recipes]:
            yield RowJob(UNPRUNED if recipe is None else str(recipe), partial(self.measure, recipe, bench))

    def load(self) -> Bench:
        """The model and the prompts on the device."""
        model = self.source.load(self.settings.device, self.dtype, self.settings.seed)
        inputs = self.prompts.to(self.settings.device, self.dtype)
        parts = (model, vision_language(model), inputs, self.new_tokens, self.rounds)
        if self.engine == "eager":
            return Bench(*parts)
        return OpenVinoBench(*parts, self.source, on_cpu(embedding_graph(model)), on_cpu(language_graph(model)))

    def measure(self, recipe: Recipe | None, bench: Callable[[], Bench], step: Callable[[float], object]) -> StageRow:
        """One row."""
        return bench().measure(recipe, self.prompts.visual, step)

    def sum_up(self, rows: list[StageRow]) -> StageBench:
        """The rows with everything that has to be known about how they came about."""
        source, settings = self.source, self.settings
        return StageBench(
            model=source.name,
            weights="random" if source.path is None else "checkpoint",
            layers=source.depth,
            parameters=sum(p.numel() for p in source.shell.parameters()),
            images=self.prompts.images,
            prompts=settings.batch_size,
            length=self.prompts.length,
            new_tokens=self.new_tokens,
            rounds=self.rounds,
            device=device_name(settings.device),
            threads=torch.get_num_threads(),
            precision=settings.precision,
            attention=self.attention,
            seed=settings.seed,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions_in_use(source.shell),
            memory_method=MEMORY
            if self.engine == "openvino"
            else memory_method(settings.device).replace("one forward", "one generate"),
            notes=[*self.prompts.notes, *([STAGES] if self.engine == "openvino" else [])],
            rows=rows,
        )

    @property
    def attention(self) -> str:
        """The implementation that runs."""
        own = str(getattr(self.source.config.get_text_config(), "_attn_implementation", None) or "sdpa")
        return own if self.engine == "eager" else self.engine

    def publish(self, done: StageBench) -> None:
        """Write results.json and report.html."""
        from ..pages.stage_report import stage_report

        write_text(self.out / "results.json", done.to_json())
        write_text(self.out / "report.html", stage_report(done))


@dataclass(frozen=True, eq=False)
class Bench:
    """A loaded model and a batch of prompts on its device."""

    model: nn.Module
    family: Any
    inputs: Inputs
    new_tokens: int
    rounds: int

    def pruned(self, recipe: Recipe | None) -> AbstractContextManager[Handle | None]:
        return nullcontext() if recipe is None else prune(self.model, recipe)

    def measure(self, recipe: Recipe | None, visual: int, step: Callable[[float], object]) -> StageRow:
        """One row: first what is counted, then runs in turn with the unpruned model. visual: visual tokens of all prompts; step hears
        which part of the work is done."""
        with self.pruned(recipe) as handle:
            macs, lengths, cache = count_macs(self.model, self.family, handle, self.inputs)
            left = [] if handle is None else tokens_left(handle)
            step(LOOKING / 2)
            peak = self.peak(recipe, handle)
        step(LOOKING)
        runs: list[Times] = []
        beside: list[Times] = []
        for turn in range(self.rounds + 1):
            both = ((recipe, runs), (None, beside))
            for way, log in both if turn % 2 else both[::-1]:
                time = self.time(way)
                if turn:  # the first pair is to warm up
                    log.append(time)
            step(LOOKING + (1 - LOOKING) * (turn + 1) / (self.rounds + 1))
        return StageRow(
            recipe=UNPRUNED if recipe is None else str(recipe),
            definition=None if recipe is None else json.loads(recipe.to_json()),
            prompts=int(self.inputs["input_ids"].shape[0]),
            visual=visual,
            left=left,
            macs=macs,
            footprint=Footprint(peak, cache, lengths),
            runs=runs,
            beside=beside,
        )

    def peak(self, recipe: Recipe | None, handle: Handle | None) -> int:
        """Bytes at the highest point of one `generate` of the model, which is pruned already."""
        return peak_memory(self.model, self.inputs, self.new_tokens)

    def time(self, recipe: Recipe | None) -> Times:
        with self.pruned(recipe) as handle:
            return time_stages(self.model, self.family, handle, self.inputs, self.new_tokens)


@dataclass(frozen=True, eq=False)
class OpenVinoBench(Bench):
    """The same in OpenVINO; what is counted is counted in PyTorch. embeddings, language: compiled, for all recipes; ready: by recipe."""

    source: Source
    embeddings: Any
    language: Any
    ready: dict[Recipe | None, OpenVinoVlm] = field(default_factory=dict)

    def peak(self, recipe: Recipe | None, handle: Handle | None) -> int:
        given = [value for value in self.inputs.values() if isinstance(value, torch.Tensor)]
        resting = sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers(), *given))
        return resting + rise(self.made(recipe, handle), self.inputs, self.new_tokens)

    def time(self, recipe: Recipe | None) -> Times:
        return time_openvino(self.made(recipe, None), self.inputs, self.new_tokens)

    def made(self, recipe: Recipe | None, handle: Handle | None) -> OpenVinoVlm:
        """The model in OpenVINO under the recipe, traced and compiled the first time, when its handle is at work."""
        if recipe not in self.ready:
            grid = grid_of(self.source, self.inputs)
            vision = vision_graph(self.model, handle, first_picture(self.inputs, grid), grid)
            facts = facts_of(self.source, self.model, recipe, self.inputs)
            self.ready[recipe] = OpenVinoVlm(facts, on_cpu(vision), self.embeddings, self.language)
        return self.ready[recipe]


def tokens_left(handle: Handle) -> list[int]:
    """Visual tokens of the whole batch after each site, in the last forward that read a prompt."""
    if handle.recipe.where == "decoder":
        return [sum(plan.counts) for plan in handle.plans]
    return [sum(handle.kept_per_image())]


def weights_on_disk(path: str | None) -> list[Any]:
    """What tells one set of weights from another without reading them: names, sizes and times of the files."""
    folder = Path(path or "").expanduser()
    if path is None or not folder.is_dir():
        return []
    found = sorted(folder.glob("*.safetensors"))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found]
