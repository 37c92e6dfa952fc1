"""Decode and transform images ahead of the model, in threads or in processes of their own, and live with broken ones."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import PruneError

Item = TypeVar("Item")
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Ticket:
    """An image that has not been read yet: its place in the data set, its name, its label if it has one, and how to read it."""

    place: int
    name: str
    label: int | None
    read: Callable[[], Image.Image]


@dataclass(frozen=True, eq=False)
class Group:
    """Images of neighbouring places: those that could be read, stacked, and the others with the reason."""

    tickets: list[Ticket]
    images: Tensor | None
    skipped: list[tuple[Ticket, str]]

    @property
    def place(self) -> int:
        """The first place, readable or not."""
        return min(ticket.place for ticket in (*self.tickets, *(ticket for ticket, _ in self.skipped)))


class Sized(Protocol):
    """A data set whose images can be had in any order."""

    def ticket(self, place: int) -> Ticket: ...


def decode(file: Path | IO[bytes]) -> Image.Image:
    """The image as RGB."""
    with Image.open(file) as image:
        return image.convert("RGB")


def attempt(read: Callable[[], Image.Image], transform: Transform) -> Tensor | str:
    """The transformed image, or why it cannot be read. An error of the transform is not hidden."""
    try:
        picture = read()
    except Exception as error:  # Pillow's decoders raise whatever their format meets
        return reason(error)
    return transform(picture)


def reason(error: Exception) -> str:
    """What Pillow or the system says, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "not an image" if "cannot identify" in str(error) else str(error) or type(error).__name__


def ahead(jobs: Iterable[Callable[[], Item]], workers: int, depth: int) -> Iterator[Item]:
    """Results of the jobs in their order, computed by threads, at most `depth` of them ahead."""
    waiting: deque[Future[Item]] = deque()
    todo = iter(jobs)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(waiting) < depth and (job := next(todo, None)) is not None:
                    waiting.append(pool.submit(job))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def by_threads(tickets: Iterable[Ticket], transform: Transform, size: int, threads: int) -> Iterator[Group]:
    """Groups of `size` neighbouring places, decoded by threads of this process."""
    jobs = (partial(look, ticket, transform) for ticket in tickets)
    looks = ahead(jobs, threads, 2 * size)
    for _, group in itertools.groupby(looks, key=lambda pair: pair[0].place // size):
        yield together(list(group))


def look(ticket: Ticket, transform: Transform) -> tuple[Ticket, Tensor | str]:
    """The ticket with what became of it."""
    return ticket, attempt(ticket.read, transform)


def together(pairs: Sequence[tuple[Ticket, Tensor | str]]) -> Group:
    """One group of the images that were read."""
    good = [(ticket, image) for ticket, image in pairs if isinstance(image, Tensor)]
    bad = [(ticket, image) for ticket, image in pairs if isinstance(image, str)]
    images = torch.stack([image for _, image in good]) if good else None
    return Group([ticket for ticket, _ in good], images, bad)


def by_processes(source: Sized, places: Sequence[int], transform: Transform, size: int, workers: int) -> Iterator[Group]:
    """Groups of `size` neighbouring places, decoded by worker processes. Raises PruneError if one of them is killed."""
    from torch.utils.data import DataLoader

    batches = [list(batch) for _, batch in itertools.groupby(places, key=lambda place: place // size)]
    # Workers are forked where that is possible: transforms need not be picklable then.
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    worker: Any = Worker(source, transform)
    loader = DataLoader(
        worker, batch_sampler=batches, num_workers=workers, collate_fn=separate, multiprocessing_context=context
    )  # fmt: skip
    try:
        for batch, (good, images, bad) in zip(batches, loader, strict=True):
            tickets = {place: source.ticket(place) for place in batch}
            yield Group([tickets[place] for place in good], images, [(tickets[place], why) for place, why in bad])
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise PruneError(
            f"a process that loads images was killed ({str(error).splitlines()[0]}), most often for lack of memory or of room in "
            "/dev/shm; what is finished is kept: give the same command again, with fewer --workers"
        ) from error


@dataclass(frozen=True, eq=False)
class Worker:
    """What a worker process does: read the image at a place."""

    source: Sized
    transform: Transform

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        return place, attempt(self.source.ticket(place).read, self.transform)


def separate(pairs: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    """What a worker sends back: one stacked tensor, as each tensor would cost an open file."""
    good = [(place, image) for place, image in pairs if isinstance(image, Tensor)]
    bad = [(place, image) for place, image in pairs if isinstance(image, str)]
    return [place for place, _ in good], torch.stack([image for _, image in good]) if good else None, bad
