"""Speed and memory of two ways to run the same batch: paired runs, median and quartiles; what the sites of a pruned model cost."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..prune import Handle
from ..runs.intervals import Spread as Spread
from ..runs.intervals import spread as spread

Forward = Callable[[Tensor], object]

LEAST, MOST = 6, 50
"""Pairs; both even, because the order within a pair alternates."""

WARM, MOMENT = 4, 3.0
"""Runs of each way before the first pair, or seconds after which fewer do."""

LONG = 60.0
"""Seconds after which two pairs are enough: whatever takes that long averages over what else the machine does."""

MEMORY = {
    "cuda": "weights, batch and torch.cuda.max_memory_allocated during one forward",
    "others": "weights, batch and the tensors alive between the operations of one forward; scratch space inside an operation is not seen",
}


@dataclass(frozen=True)
class Pairs:
    """Seconds of one way and the other, run by run; the i-th of both were measured right beside each other."""

    first: list[float]
    second: list[float]

    @property
    def speedup(self) -> Spread:
        """How many times faster the second way is: the ratio within each pair, then median and quartiles."""
        return spread(a / b for a, b in zip(self.first, self.second, strict=True))

    @property
    def median(self) -> float:
        """Median seconds of the second way."""
        return statistics.median(self.second)

    def __str__(self) -> str:
        return f"speed-up {self.speedup}"


def race(first: Forward, second: Forward, images: Tensor, seconds: float = 4.0) -> Pairs:
    """Both forwards on the same images in turn, as `alternate` says."""

    def timed(forward: Forward) -> float:
        return clock(lambda: forward(images), images.device)

    return alternate(lambda: timed(first), lambda: timed(second), seconds)


def alternate(first: Callable[[], float], second: Callable[[], float], seconds: float) -> Pairs:
    """Take both times in turn until `seconds` have passed: 6 to 50 pairs after some runs to warm up; 2 or 4 if those take a minute.

    Whatever else the machine does slows both alike, and the order changes with every pair.
    """
    logs: tuple[list[float], list[float]] = ([], [])
    ways = ((first, logs[0]), (second, logs[1]))
    for way, _ in ways:
        warm_up(way)
    start = time.perf_counter()
    for turn in range(1, MOST + 1):
        for way, log in ways if turn % 2 else ways[::-1]:
            log.append(way())
        passed = time.perf_counter() - start
        if turn % 2 == 0 and passed >= seconds and (turn >= LEAST or passed >= LONG):
            break
    return Pairs(*logs)


def warm_up(way: Callable[[], object]) -> None:
    """Run until nothing changes any more: at least once."""
    start = time.perf_counter()
    for _ in range(WARM):
        way()
        if time.perf_counter() - start >= MOMENT:
            break


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's queue included."""
    start = now(device)
    run()
    return now(device) - start


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def memory_method(device: str) -> str:
    """How `peak_memory` measures there."""
    return MEMORY["cuda" if torch.device(device).type == "cuda" else "others"]


def peak_memory(model: nn.Module, images: Tensor) -> int:
    """Bytes at the highest point of one forward, as `memory_method` says for the device."""
    resting: int = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) + images.nbytes
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
        before = torch.cuda.memory_allocated(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        model(images)
        return int(resting + torch.cuda.max_memory_allocated(images.device) - before)
    alive = Alive()
    with alive:
        model(images)
    return resting + alive.peak


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of the tensors that operations make, from their birth to the release of their storage."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and key(tensor) not in given and key(tensor) not in self.known:
                self.see(tensor)
        return result

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.known[key(tensor)] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key(tensor))

    def forget(self, storage: int) -> None:
        self.now -= self.known.pop(storage, 0)


def key(tensor: Tensor) -> int:
    """Identity of the tensor's storage."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def site_share(module: nn.Module, handle: Handle, images: Tensor, rounds: int = 5) -> float:
    """Part of the time of the blocks with sites that scoring, choosing and reducing takes: the median over some forwards."""
    shares = []
    with clocked(handle, images.device) as spent:
        for _ in range(rounds):
            spent.update(sites=0.0, blocks=0.0)
            module(images)
            shares.append(spent["sites"] / spent["blocks"])
    return sorted(shares)[rounds // 2]


@contextmanager
def clocked(handle: Handle, device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in the steps of the handle's sites and in the blocks around them, growing with every forward."""
    spent = {"sites": 0.0, "blocks": 0.0}

    def timed(work: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            kept: list[Any] = []
            spent[name] += clock(lambda: kept.append(work(*args, **kwargs)), device)
            return kept[0]

        return run

    blocks = {id(block): block for block in (handle.family.blocks[max(0, layer)] for layer in handle.layers)}.values()
    forwards = [block.forward for block in blocks]
    steps = [site.run for site in handle.sites]
    try:
        for site in handle.sites:
            site.run = timed(site.run, "sites")
        for block in blocks:
            block.forward = timed(block.forward, "blocks")
        yield spent
    finally:
        for site, step in zip(handle.sites, steps, strict=True):
            site.run = step
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
