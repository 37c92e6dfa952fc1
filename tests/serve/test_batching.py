"""Batches: of one recipe each, full or overdue, oldest first; nothing is lost when a request goes or a forward fails."""

import asyncio
import threading
import time
from functools import partial

import pytest
import torch

from sparsight.serve.batching import Batcher
from sparsight.serve.refusal import Refusal
from sparsight.serve.variants import Answer


class Engine:
    """Answers with the image's own numbers and remembers the batches."""

    def __init__(self):
        self.batches = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, name, images):
        assert self.free.wait(30)
        self.batches.append((name, [int(image) for image in images]))
        if any(image < 0 for image in images):
            raise RuntimeError("no room")
        return [Answer(None, image, [], []) for image in images]


def play(scene, most=3, longest=0.0, names=("a", "b")):
    """Run a scene with a batcher at work; the engine afterwards."""
    engine = Engine()

    async def stage():
        batcher = Batcher({name: partial(engine, name) for name in names}, most, longest)
        work = asyncio.create_task(batcher.run())
        try:
            await scene(batcher, engine)
        finally:
            engine.free.set()
            work.cancel()
            batcher.close()

    asyncio.run(stage())
    return engine


def ask(batcher, name, *numbers):
    return [asyncio.create_task(batcher.ask(name, torch.tensor(number))) for number in numbers]


async def answers(tasks):
    return [int(found.features) for found in await asyncio.gather(*tasks)]


def test_batches_are_full_and_of_one_recipe():
    async def scene(batcher, engine):
        tasks = [task for number in range(7) for task in ask(batcher, "ab"[number % 2], number)]
        assert await answers(tasks) == list(range(7))
        assert batcher.waiting == 0

    engine = play(scene, longest=0.05)
    assert engine.batches == [("a", [0, 2, 4]), ("b", [1, 3, 5]), ("a", [6])]


def test_a_single_image_waits_for_others_no_longer_than_told():
    async def scene(batcher, engine):
        start = time.monotonic()
        assert await answers(ask(batcher, "a", 5)) == [5]
        assert 0.1 <= time.monotonic() - start < 2

    play(scene, longest=0.1)


def test_the_oldest_is_next():
    async def scene(batcher, engine):
        engine.free.clear()
        tasks = ask(batcher, "a", 0)
        await asyncio.sleep(0.02)
        tasks += ask(batcher, "b", 1)
        await asyncio.sleep(0.02)
        tasks += ask(batcher, "a", 2, 3, 4)
        await asyncio.sleep(0.02)
        engine.free.set()
        await answers(tasks)

    assert play(scene).batches == [("a", [0]), ("b", [1]), ("a", [2, 3, 4])]


def test_who_leaves_the_queue_costs_nothing():
    async def scene(batcher, engine):
        engine.free.clear()
        first = ask(batcher, "a", 0)
        await asyncio.sleep(0.02)
        tasks = ask(batcher, "a", 1, 2, 3)
        await asyncio.sleep(0.02)
        assert batcher.waiting == 3
        tasks[1].cancel()
        first[0].cancel()  # in the engine already: its answer goes nowhere
        await asyncio.sleep(0.02)
        assert batcher.waiting == 2
        engine.free.set()
        assert await answers([tasks[0], tasks[2]]) == [1, 3]

    assert play(scene).batches == [("a", [0]), ("a", [1, 3])]


def test_a_forward_that_fails_is_an_answer_too():
    async def scene(batcher, engine):
        with pytest.raises(Refusal, match="the forward failed: RuntimeError"):
            await batcher.ask("a", torch.tensor(-1))
        assert await answers(ask(batcher, "a", 1)) == [1]

    play(scene)
