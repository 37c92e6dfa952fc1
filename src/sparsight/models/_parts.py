"""A large batch through a block in parts, so that what the block makes on the way stays in the processor's caches.

It also stays below the size from which the C library asks the system for fresh memory for every tensor: at batch 32 a tenth of a
ViT-S's time went into clearing pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

BYTES = 8 << 20
"""How large the widest tensor of a part may be."""

ROWS = 128
"""Products with fewer rows are slower by more than what parts gain."""

Besides = Any
"""What is given for all images or for each: None, tensors, tuples of them. Those of four dimensions begin with the images, or with 1."""


def by_images(work: Callable[..., Tensor], x: Tensor, width: int, *besides: Besides) -> Tensor:
    """work(x [B, L, C], *besides), which treats every image by itself and whose widest tensor has `width` channels."""
    batch, count = x.shape[0], units(x.shape[0], x.shape[1], width, x)
    if count == batch:
        return work(x, *besides)
    each = {id(t) for t in tree_leaves(besides) if isinstance(t, Tensor) and t.dim() == 4 and t.shape[0] == batch}
    starts = range(0, batch, count)
    return torch.cat(
        [work(*tree_map(lambda t, at=at: t[at : at + count] if t is x or id(t) in each else t, (x, *besides))) for at in starts]
    )


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
