"""Batches out of single requests: one queue for each recipe, one thread that runs the engine."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from .refusal import Refusal
from .variants import Answer

Run = Callable[[Sequence[Tensor]], list[Answer]]
"""Images [3, H, W] -> one answer each."""

Note = Callable[[str, int, float], object]
"""Told after every forward: recipe, images, seconds."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """An image in a queue, since when, and the answer to come."""

    image: Tensor
    since: float
    answer: asyncio.Future[Answer]


class Batcher:
    """Forms batches of one recipe each. Everything but the forward itself happens on the event loop, so nothing needs a lock.

    A batch starts as soon as the engine is free and a queue is full (`most` images) or its oldest image has waited `longest` seconds; of
    several such queues the one whose first image is oldest is next. An image whose request is cancelled leaves its queue at once.
    """

    def __init__(self, runs: Mapping[str, Run], most: int, longest: float, threads: int = 0, note: Note | None = None) -> None:
        self.runs = dict(runs)
        self.most, self.longest, self.note = most, longest, note
        self.queues: dict[str, deque[Waiting]] = {name: deque() for name in self.runs}
        self.news = asyncio.Event()
        prepare = (lambda: torch.set_num_threads(threads)) if threads else None
        self.thread = ThreadPoolExecutor(1, "engine", initializer=prepare)

    @property
    def waiting(self) -> int:
        """Images in the queues."""
        return sum(map(len, self.queues.values()))

    async def ask(self, name: str, image: Tensor) -> Answer:
        """The answer to one image [3, H, W] under the recipe of that name. Raises Refusal 500 if the forward fails."""
        loop = asyncio.get_running_loop()
        place = Waiting(image, loop.time(), loop.create_future())
        queue = self.queues[name]
        queue.append(place)
        self.news.set()
        try:
            return await place.answer
        finally:
            if place in queue:
                queue.remove(place)

    async def run(self) -> None:
        """Answer what is asked until cancelled."""
        while True:
            name, batch = await self.next_batch()
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self.thread, self.forward, name, batch)
            except Exception as error:  # whatever an engine meets; the next batch may do better
                for place in batch:
                    if not place.answer.done():
                        place.answer.set_exception(Refusal(500, f"the forward failed: {type(error).__name__}"))
            else:
                for place, answer in zip(batch, answers, strict=True):
                    if not place.answer.done():
                        place.answer.set_result(answer)

    def forward(self, name: str, batch: Sequence[Waiting]) -> list[Answer]:
        """Run the engine, in its thread."""
        start = time.perf_counter()
        answers = self.runs[name]([place.image for place in batch])
        if self.note is not None:
            self.note(name, len(batch), time.perf_counter() - start)
        return answers

    async def next_batch(self) -> tuple[str, list[Waiting]]:
        """Wait until a batch may start, and take it out of its queue."""
        while True:
            self.news.clear()
            now = asyncio.get_running_loop().time()
            oldest = {name: queue[0].since for name, queue in self.queues.items() if queue}
            ready = [name for name in oldest if len(self.queues[name]) >= self.most or now >= oldest[name] + self.longest]
            if ready:
                name = min(ready, key=oldest.__getitem__)
                queue = self.queues[name]
                return name, [queue.popleft() for _ in range(min(self.most, len(queue)))]
            left = min(oldest.values()) + self.longest - now if oldest else None
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.news.wait(), left)

    def close(self) -> None:
        """Wait for the forward that is running and end the thread."""
        self.thread.shutdown()
