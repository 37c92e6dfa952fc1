"""What the sites of a pruned model cost: part of the time of the blocks that they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ..prune import Handle
from .timing import clock

Work = Callable[..., Any]


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

    def timed(work: Work, name: str) -> Work:
        @wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            kept: list[Any] = []
            spent[name] += clock(lambda: kept.append(work(*args, **kwargs)), device)
            return kept[0]

        return run

    blocks = {id(block): block for block in (handle.family.blocks[max(0, layer)] for layer in handle.layers)}.values()
    forwards = [block.forward for block in blocks]
    steps = [site.step for site in handle.sites]
    try:
        for site in handle.sites:
            site.step = timed(site.step, "sites")
        for block in blocks:
            block.forward = timed(block.forward, "blocks")
        yield spent
    finally:
        for site, step in zip(handle.sites, steps, strict=True):
            site.step = step
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
