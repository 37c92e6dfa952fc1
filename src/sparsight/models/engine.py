"""How a block with sites runs: the forward that `Family.patch` puts over the block's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._line import Line
from .class_cache import forget, remember
from .site import Site

if TYPE_CHECKING:
    from .family import Family


def pruned_forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a patched block. transformers' layers checkpoint inside the forward that this one replaces."""
    family: Family
    family, index, sites = self.__dict__["_sparsight"]
    if args or kwargs:
        family.refuse_mask(args, kwargs)
    line = family.lines.take(index, x, kwargs, family.fused)
    if line is not None and not sites and not line.tapped:
        x = line.run(self, x, family.bias(index, x) if line.biased else None, family.follow(index, kwargs))
        return family.lines.gave(index, x)
    work = partial(run_block, family, self, index, sites, line, kwargs)
    if self.training and getattr(self, "gradient_checkpointing", False):
        checkpoint: Callable[..., Tensor] = self.__dict__["_gradient_checkpointing_func"]
        return checkpoint(work, x)
    return work(x) if torch.compiler.is_compiling() else family.lines.gave(index, work(x))


def run_block(
    family: Family, block: nn.Module, index: int, sites: dict[str, Site], line: Line | None, kwargs: dict[str, Any], x: Tensor
) -> Tensor:
    """The block's own arithmetic, with tokens leaving before it, in the middle or at the end. line: what runs it, if this call may."""
    runs = line or family
    if "input" in sites:
        x = family.visit(sites["input"], block, x, {})
    kwargs = family.follow(index, kwargs)
    site = sites.get("attn") or sites.get("block")
    early = family.attend_early(site, block, index, x, kwargs, line) if site is not None and site.early else None
    if early is not None:
        return runs.feed(block, early)
    x, heads = attend(family, block, index, site, line, kwargs, x)
    if "attn" in sites:
        x = family.visit(sites["attn"], block, x, heads)
    x = runs.feed(block, x)
    if "block" in sites:
        x = family.visit(sites["block"], block, x, heads)
    return x


def attend(
    family: Family, block: nn.Module, index: int, site: Site | None, line: Line | None, kwargs: dict[str, Any], x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """x plus the block's attention branch, and what sites ask of its q, k and v."""
    memory = None if site is None else site.memory(x)
    if memory is not None:
        x, kwargs = remember(family, block, index, kwargs, x, memory)
        return x, forget(family.hear(block, index, kwargs), family.prefix, family.scale(block))
    if line is None:
        x = family.attend(block, x, family.bias(index, x), kwargs)
        return x, family.hear(block, index, kwargs)
    x, heads = line.attend(block, x, family.bias(index, x) if line.biased else None, kwargs)
    family.note(index, heads)
    return x, heads
