"""The run loop: every recipe on every image, chunk by chunk, and rows that are measured one by one. Each part is kept when it is finished."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..data.reading import Group, Source, Transform, by_processes, by_threads
from ..errors import PruneError
from ..prune import Handle, prune
from ..recipe import Recipe
from .store import UNPRUNED, Chunk, ResultStore
from .workers import Workers

Ask = Callable[[Tensor, Handle | None], Mapping[str, Tensor]]
"""images [n, 3, H, W] and the handle of the recipe at work -> columns, one row per image."""
THREADS = 4


# ---- progress ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """News of a run: `done` of `total` rows or images (None where only the end will tell), what is being done, a row when it is finished."""

    done: float
    total: int | None
    text: str
    row: object | None = None
    restored: bool = False
    unit: str = "rows"

    def __str__(self) -> str:
        return f"{self.done:.1f} of {self.total} {self.unit}: {self.text}"


Listener = Callable[[Step], None]


def ignore(step: Step) -> None:
    """Listen to nothing."""


# ---- rows -------------------------------------------------------------------------------------------------------------


class Kept(Protocol):
    """A finished row."""

    def to_dict(self) -> dict[str, Any]: ...


Row = TypeVar("Row", bound=Kept)
Measure = Callable[[Callable[[float], object]], Row]
"""Measures one row; what it is given hears which part of the row is done, from 0 to 1."""


@dataclass(frozen=True)
class RowJob(Generic[Row]):
    """A row to be measured: its name, how, and what it is kept under where that is more than the name."""

    name: str
    measure: Measure[Row]
    key: str = ""


def run_rows(
    jobs: Iterable[RowJob[Row]],
    total: int,
    store: ResultStore,
    read: Callable[[dict[str, Any]], Row],
    listen: Listener = ignore,
) -> list[Row]:
    """Rows in the order of the jobs: from the store what is finished there, else measured and kept at once."""
    rows: list[Row] = []
    for job in jobs:
        done, name = len(rows), job.name
        row = store.find(job.key or name, read)
        restored = row is not None
        if row is None:
            listen(Step(done, total, name))
            row = job.measure(lambda part, done=done, name=name: listen(Step(done + part, total, name)))  # type: ignore[misc]
            store.keep(job.key or name, row.to_dict())
        rows.append(row)
        listen(Step(len(rows), total, name, row, restored))
    return rows


# ---- images -----------------------------------------------------------------------------------------------------------


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
    store: ResultStore
    processes: Workers

    def run(self, parts: Mapping[str, Source], listen: Listener = ignore) -> dict[str, list[Chunk]]:
        """All images of every part under every recipe: the answers, recipe by recipe. Only the first process gets them.

        A part is a data set by the name that its answers are kept under.
        """
        counts, done = {}, 0
        totals = [source.total for source in parts.values()]
        known = [total for total in totals if total is not None]
        total = -(-sum(known) // self.processes.size) if len(known) == len(totals) else None
        for part, source in parts.items():

            def step(images: int, part: str = part) -> None:
                nonlocal done
                done += images
                listen(Step(done, total, part, unit="images"))

            step(0)
            counts[part] = self.fill(source, part, step)
        for part, count in counts.items():
            self.processes.bring(self.store.folder, self.files(part, count))
        return (
            {part: self.collect(part, count, parts[part].title) for part, count in counts.items()}
            if self.processes.rank == 0
            else {}
        )

    def fill(self, source: Source, part: str, step: Callable[[int], None]) -> int:
        """Fill the chunks that are this process's share and not there yet; returns the number of all chunks.

        step hears how many images were read, now or before.
        """
        todo: dict[int, list[Recipe | None]] = {}
        last = -1

        def wanted(place: int) -> bool:
            nonlocal last
            last = max(last, number := place // self.pace.stride)
            if number not in todo:
                mine = self.recipes if self.processes.mine(number) else ()
                todo[number] = [recipe for recipe in mine if not self.store.has_chunk(task(part, recipe), number)]
            if not todo[number] and self.processes.mine(number):
                step(1)
            return bool(todo[number])

        for number, groups in itertools.groupby(self.groups(source, wanted), key=lambda group: group.place // self.pace.stride):
            chunks = [Chunk() for _ in todo[number]]
            for group in groups:
                images = None if group.images is None else group.images.to(next(self.model.parameters()))
                for recipe, chunk in zip(todo[number], chunks, strict=True):
                    chunk.add(group, {} if images is None else answer(self.model, self.ask, recipe, images, self.seed))
                step(len(group.refs) + len(group.skipped))
            for recipe, chunk in zip(todo[number], chunks, strict=True):
                self.store.keep_chunk(task(part, recipe), number, chunk)
        return last + 1

    def groups(self, source: Source, wanted: Callable[[int], bool]) -> Iterator[Group]:
        """Batches of the wanted images; streams are always read by threads."""
        if self.pace.workers and source.total is not None:
            places = [place for place in range(source.total) if wanted(place)]
            return by_processes(source, places, self.transform, self.pace.batch_size, self.pace.workers)
        return by_threads(source.refs(wanted), self.transform, self.pace.batch_size, THREADS)

    def collect(self, part: str, count: int, title: str) -> list[Chunk]:
        """All answers, recipe by recipe. Raises PruneError if no image was read, or if no answer under a recipe is finite."""
        found = [self.store.collect(task(part, recipe), count) for recipe in self.recipes]
        if not len(found[0]):
            for name in self.files(part, count):  # chunks without a single answer
                (self.store.folder / name).unlink(missing_ok=True)
            _, name, why = next(iter(found[0].skipped), (0, "", "it is empty"))
            raise PruneError(f"none of the {len(found[0].skipped)} images of {title} can be read; {name}: {why}")
        for recipe, chunk in zip(self.recipes, found, strict=True):
            if not chunk.columns["finite"].any():
                under = "" if recipe is None else f" under {recipe}"
                raise PruneError(
                    f"all {len(chunk)} answers{under} are NaN or infinite; check the weights, or give precision fp32 if it is another"
                )
        return found

    def files(self, part: str, count: int) -> list[str]:
        """Names of this process's chunks."""
        own = (number for number in range(count) if self.processes.mine(number))
        return [self.store.chunk_file(task(part, recipe), number).name for number in own for recipe in self.recipes]


def answer(model: nn.Module, ask: Ask, recipe: Recipe | None, images: Tensor, seed: int) -> Mapping[str, Tensor]:
    """Columns of one batch under one recipe; `tokens` [n, sites] says how many each image was left with, `finite` [n] whether all
    numbers of an image are finite. Where they are not, `top` is -1, which is no class."""
    torch.manual_seed(seed)
    with torch.inference_mode(), pruned(model, recipe) as handle:
        columns = dict(ask(images, handle))
        if handle is not None:
            columns["tokens"] = torch.tensor([plan.counts for plan in handle.plans], dtype=torch.int32).T
    columns = {name: tensor.cpu() for name, tensor in columns.items()}
    columns["finite"] = finite(columns)
    if "top" in columns:
        columns["top"] = columns["top"].masked_fill(~columns["finite"].unsqueeze(1), -1)
    return columns


def finite(columns: Mapping[str, Tensor]) -> Tensor:
    """Whether all numbers of a row are finite [n]."""
    rows = [tensor.isfinite().reshape(len(tensor), -1).all(dim=1) for tensor in columns.values() if tensor.is_floating_point()]
    count = len(next(iter(columns.values())))
    return torch.stack(rows).all(dim=0) if rows else torch.ones(count, dtype=torch.bool)


def pruned(model: nn.Module, recipe: Recipe | None) -> AbstractContextManager[Handle | None]:
    """The model under a recipe for a while."""
    return nullcontext() if recipe is None else prune(model, recipe)


def task(part: str, recipe: Recipe | None) -> str:
    """What a chunk is kept under."""
    return f"{part} {UNPRUNED if recipe is None else recipe}"
