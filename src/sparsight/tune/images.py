"""A vision model's recipes, measured on images: right answers, or answers that are the unpruned model's, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data.fingerprint import digest
from ..data.reading import by_threads
from ..errors import PruneError
from ..evaluation.accuracy import Judgement, judge
from ..evaluation.study import Study
from ..load.models import twin
from ..prune import prune
from ..runs.settings import Settings
from ..runs.store import Chunk, ResultStore
from ..runs.sweep import Pace, Sweep, pruned, task
from ..runs.workers import Workers
from ..speed.bench import BACKENDS, ENGINES, HINTS
from ..speed.compile import check_engine, compile
from ..speed.macs import macs, skeleton
from ..speed.timing import race
from .parts import Part
from .search import Cost, Reading
from .space import Stack

Metric = Literal["accuracy", "agreement"]
MACS = "macs"
CHUNK = 256
"""Images after which answers are kept."""
SECONDS = 2.0
"""Time for the paired runs of a trial, where cost is latency."""


def unheard(_images: int) -> None:
    """Nobody listens."""


# ---- quality ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ImageExam:
    """Recipes on the images of a search, piece by piece; answers are kept and found again. costs: see `Macs` and `Latency`."""

    study: Study
    pieces: list[Part]
    metric: Metric
    settings: Settings
    store: ResultStore
    costs: Costs
    known: dict[str, Chunk] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return sum(len(piece.places) for piece in self.pieces)

    def cost(self, stack: Stack, tokens: Sequence[float] | None = None) -> Cost | None:
        return self.costs.of(stack, tokens)

    def read(self, stack: Stack, step: Callable[[float], object]) -> Iterator[Reading]:
        outcomes: list[float] = []
        tokens: list[Tensor] = []
        done = 0
        for piece in self.pieces:

            def hear(count: int) -> None:
                nonlocal done
                done += count
                step(done / self.items)

            chunk = self.answers(stack, piece, hear)
            if not len(chunk):
                continue
            outcomes += self.outcomes(self.judged(chunk, piece))
            tokens += [chunk.columns["tokens"].double()] if "tokens" in chunk.columns else []
            if outcomes:
                yield Reading(outcomes[:], torch.cat(tokens).mean(dim=0).tolist() if tokens else [])

    def answers(self, stack: Stack, part: Part, step: Callable[[int], None] = unheard) -> Chunk:
        """Answers to all images of a part, from the store where they are there."""
        name = f"{digest(part.fingerprint())} {' + '.join(map(str, stack[:-1]))}"
        last = stack[-1] if stack else None
        with ExitStack() as at_work:
            for recipe in stack[:-1]:
                at_work.enter_context(pruned(self.study.loaded.model, recipe))
            pace = Pace(self.settings.batch_size, CHUNK)
            sweep = Sweep(
                self.study.loaded.model, self.study.loaded.transform, [last], self.study.ask, pace, self.settings.seed, self.store, Workers()
            )  # fmt: skip
            count = sweep.fill(part, name, step)
        return self.store.collect(task(name, last), count)

    def unpruned(self, part: Part) -> Chunk:
        """The unpruned model's answers."""
        key = part.fingerprint()
        if key not in self.known:
            self.known[key] = self.answers((), part)
        return self.known[key]

    def judged(self, chunk: Chunk, part: Part) -> Judgement:
        return judge(chunk, self.unpruned(part))

    def outcomes(self, judged: Judgement) -> list[float]:
        """1 or 0 for each image, by the metric."""
        found = judged.top1 if self.metric == "accuracy" else judged.agree
        return [float(hit) for hit in found or ()]

    def measure(self, stack: Stack, part: Part) -> list[float]:
        """Outcomes of a stack on another part, in one go."""
        return self.outcomes(self.judged(self.answers(stack, part), part))


# ---- cost -------------------------------------------------------------------------------------------------------------


class Costs:
    """What stacks of recipes cost. unit: of the cost."""

    unit: str

    def of(self, stack: Stack, tokens: Sequence[float] | None = None) -> Cost | None:
        raise NotImplementedError


@dataclass(eq=False)
class Macs(Costs):
    """Multiply-accumulates per image, in thousands of millions; exact."""

    study: Study
    unit: str = "GMACs"
    whole: int = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.count((), None)

    def of(self, stack: Stack, tokens: Sequence[float] | None = None) -> Cost | None:
        if tokens is None and any(recipe.adaptive for recipe in stack):
            return None
        found = self.count(stack, tokens)
        return Cost(found / 1e9, self.whole / found)

    def count(self, stack: Stack, tokens: Sequence[float] | None) -> int:
        loaded = self.study.loaded
        shell = skeleton(loaded.model, loaded.image_size)
        for recipe in stack[:-1]:
            prune(shell, recipe)
        counts = None if tokens is None else [max(1, round(count)) for count in tokens]
        last = stack[-1] if stack else None
        return macs(shell, last, loaded.image_size, counts=counts, forward=self.study.forward)


@dataclass(eq=False)
class Latency(Costs):
    """Milliseconds of a forward in an engine, in turn with the unpruned model in the same engine."""

    study: Study
    engine: str
    images: Tensor
    precision: str = "fp32"
    seconds: float = SECONDS
    unit: str = "ms"
    base: Any = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.ready(())

    def of(self, stack: Stack, tokens: Sequence[float] | None = None) -> Cost | None:
        if self.engine not in ("eager", "compile") and any(recipe.adaptive for recipe in stack):
            raise PruneError(f"{self.engine} takes no recipe that keeps another number of tokens in every image")
        mine = self.ready(stack)
        with torch.inference_mode():
            times = race(self.base, mine, self.images, self.seconds)
        return Cost(1e3 * times.median, times.speedup.median)

    def ready(self, stack: Stack) -> Any:
        """The model under the recipes, in the engine."""
        model: nn.Module = twin(self.study.loaded.model)
        for recipe in stack:
            prune(model, recipe)
        if self.engine == "eager":
            return model
        hint = "int8" if self.engine.endswith("int8") else HINTS[self.precision] if self.engine == "openvino" else None
        return compile(model, self.images, ENGINES[self.engine], precision=hint, batch_sizes=[len(self.images)])


def check_cost(engine: str, device: str, precision: str) -> str:
    """The name of the engine; a PruneError for one that is not known, not installed, or not for the device."""
    if engine == MACS:
        return engine
    engine = "compile" if engine == "inductor" else engine
    if engine not in BACKENDS:
        raise PruneError(f"engine={engine!r} is not known; choose {MACS}, {', '.join(BACKENDS)}")
    if engine not in ("eager", "compile"):
        check_engine(ENGINES[engine], None)
        if device != "cpu" or precision != "fp32":
            raise PruneError(f"{engine} is timed in fp32 on the CPU; give device=cpu and precision=fp32, or another engine")
    return engine


def first_images(study: Study, part: Part, count: int) -> Tensor:
    """The first readable images of a part [count, 3, H, W], repeated if they are fewer."""
    for group in by_threads(part.refs(lambda _place: True), study.loaded.transform, count, threads=1):
        if group.images is not None:
            images = group.images.repeat(-(-count // len(group.images)), 1, 1, 1)[:count]
            return images.to(next(study.loaded.model.parameters()))
    raise PruneError(f"none of the images of {part.title} can be read")
