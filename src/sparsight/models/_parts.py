"""A large batch through a block in parts, so that what the block makes on the way stays in the processor's caches.

It also stays below the size from which the C library asks the system for fresh memory for every tensor: at batch 32 a tenth of a
ViT-S's time went into clearing pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

BYTES = 8 << 20
"""How large the widest tensor of a part may be."""

ROWS = 128
"""Products with fewer rows are slower by more than what parts gain."""


def by_images(work: Callable[..., Tensor], x: Tensor, width: int, *besides: Any) -> Tensor:
    """work(x [B, L, C], *besides), which treats every image by itself and whose widest tensor has `width` channels.

    besides: None, tensors, tuples of them. Tensors of four dimensions begin with the images, or with 1 for all; others are for all.
    """
    batch, count = x.shape[0], units(x.shape[0], x.shape[1], width, x)
    if count == batch:
        return work(x, *besides)

    def part(start: int) -> Tensor:
        some = slice(start, start + count)
        own = tree_map(lambda t: t[some] if isinstance(t, Tensor) and t.dim() == 4 and t.shape[0] == batch else t, besides)
        return work(x[some], *own)

    return torch.cat([part(start) for start in range(0, batch, count)])


def by_tokens(work: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """As `by_images` for work that treats every token by itself; parts are [tokens, 1, C]."""
    tokens = x.shape[0] * x.shape[1]
    count = units(tokens, 1, width, x)
    if count == tokens:
        return work(x)
    return torch.cat([work(part) for part in torch.split(x.reshape(tokens, 1, -1), count)]).view(x.shape)


def units(total: int, rows: int, width: int, x: Tensor) -> int:
    """How many of `total` units of so many rows make a part: a divisor, since packed weights are for one number of rows."""
    most = BYTES // max(1, rows * width * x.element_size())
    if total <= most or not x.is_cpu:
        return total
    count = next((count for count in range(max(1, most), 0, -1) if total % count == 0), total)
    return count if count * rows >= ROWS else total
