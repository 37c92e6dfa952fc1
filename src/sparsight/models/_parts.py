"""A large batch through a block in parts, so that what the block makes on the way stays in the processor's caches.

It also stays below the size from which the C library asks the system for fresh memory for every tensor: at batch 32 a tenth of a
ViT-S's time went into clearing pages.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BYTES = 8 << 20
"""How large the widest tensor of a part may be."""

ROWS = 128
"""Products with fewer rows are slower by more than what parts gain."""

Work = Callable[[Tensor], Tensor]


def by_images(work: Work, x: Tensor, width: int) -> Tensor:
    """work(x [B, L, C]), which treats every image by itself and whose widest tensor has `width` channels."""
    count = units(x.shape[0], x.shape[1], width, x)
    return work(x) if count == x.shape[0] else torch.cat([work(part) for part in torch.split(x, count)])


def by_tokens(work: Work, x: Tensor, width: int) -> Tensor:
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
