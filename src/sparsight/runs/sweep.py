"""Every recipe on every image, chunk by chunk: read once, asked of the unpruned model and of every recipe in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.reading import Group, Transform, by_processes, by_threads
from ..data.sources import Source
from ..prune import Handle, prune
from ..recipe import Recipe
from .chunks import Chunk, Shelf
from .comparison import UNPRUNED
from .workers import Crew

Ask = Callable[[Tensor, Handle | None], Mapping[str, Tensor]]
"""images [n, 3, H, W] and the handle of the recipe at work -> columns, one row per image."""
THREADS = 4


@dataclass(frozen=True)
class Pace:
    """How images are read: none of it changes an answer but the batch size. workers 0 reads in threads of this process."""

    batch_size: int = 32
    chunk: int = 256
    workers: int = 0

    @property
    def stride(self) -> int:
        """Images per chunk: whole batches, so that a batch is the same whoever makes it."""
        return self.batch_size * max(1, self.chunk // self.batch_size)


@dataclass(frozen=True, eq=False)
class Sweep:
    """What to ask of which model, and where the answers are kept."""

    model: nn.Module
    transform: Transform
    recipes: Sequence[Recipe | None]
    ask: Ask
    pace: Pace
    seed: int
    shelf: Shelf
    crew: Crew

    def run(self, source: Source, part: str, step: Callable[[int], None]) -> int:
        """Fill the chunks that are this process's share and not there yet; returns the number of all chunks.

        part: goes before the recipe in a chunk's name; step hears how many images were read, now or before.
        """
        todo: dict[int, list[Recipe | None]] = {}
        last = -1

        def wanted(place: int) -> bool:
            nonlocal last
            last = max(last, number := place // self.pace.stride)
            if number not in todo:
                mine = self.recipes if self.crew.mine(number) else ()
                todo[number] = [recipe for recipe in mine if not self.shelf.has(task(part, recipe), number)]
            if not todo[number] and self.crew.mine(number):
                step(1)
            return bool(todo[number])

        for number, groups in itertools.groupby(self.groups(source, wanted), key=lambda group: group.place // self.pace.stride):
            chunks = [Chunk() for _ in todo[number]]
            for group in groups:
                for recipe, chunk in zip(todo[number], chunks, strict=True):
                    chunk.add(group, self.answer(recipe, group))
                step(len(group.tickets) + len(group.skipped))
            for recipe, chunk in zip(todo[number], chunks, strict=True):
                self.shelf.keep(task(part, recipe), number, chunk)
        return last + 1

    def groups(self, source: Source, wanted: Callable[[int], bool]) -> Iterator[Group]:
        """Batches of the wanted images; streams are always read by threads."""
        if self.pace.workers and source.total is not None:
            places = [place for place in range(source.total) if wanted(place)]
            sized: Any = source
            return by_processes(sized, places, self.transform, self.pace.batch_size, self.pace.workers)
        return by_threads(source.tickets(wanted), self.transform, self.pace.batch_size, THREADS)

    def answer(self, recipe: Recipe | None, group: Group) -> Mapping[str, Tensor]:
        """Columns of one batch under one recipe; `tokens` [n, sites] says how many each image was left with."""
        if group.images is None:
            return {}
        images = group.images.to(next(self.model.parameters()))
        torch.manual_seed(self.seed)
        with torch.inference_mode(), pruned(self.model, recipe) as handle:
            columns = dict(self.ask(images, handle))
            if handle is not None:
                columns["tokens"] = torch.tensor([plan.counts for plan in handle.plans], dtype=torch.int32).T
        return {name: tensor.cpu() for name, tensor in columns.items()}

    def collect(self, part: str, count: int) -> list[Chunk]:
        """All answers, recipe by recipe."""
        return [self.shelf.collect(task(part, recipe), count) for recipe in self.recipes]

    def files(self, part: str, count: int) -> list[str]:
        """Names of this process's chunks."""
        own = (number for number in range(count) if self.crew.mine(number))
        return [self.shelf.file(task(part, recipe), number).name for number in own for recipe in self.recipes]


def pruned(model: nn.Module, recipe: Recipe | None) -> AbstractContextManager[Handle | None]:
    """The model under a recipe for a while."""
    return nullcontext() if recipe is None else prune(model, recipe)


def task(part: str, recipe: Recipe | None) -> str:
    """What a chunk is kept under."""
    return f"{part} {UNPRUNED if recipe is None else recipe}"
