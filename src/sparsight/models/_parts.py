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

ROWS = 256
"""Products with fewer rows are slower than what parts gain."""


def in_parts(work: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """work(x [B, L, C]) for every image alone, of which the widest tensor has `width` channels."""
    count = images(x, width)
    return work(x) if count == x.shape[0] else torch.cat([work(part) for part in torch.split(x, count)])


def images(x: Tensor, width: int) -> int:
    """How many images of x [B, L, C] make a part: a divisor of B, since packed weights are for one number of rows."""
    batch, length, _ = x.shape
    most = BYTES // max(1, length * width * x.element_size())
    if batch <= most or not x.is_cpu:
        return batch
    count = next((count for count in range(max(1, most), 0, -1) if batch % count == 0), batch)
    return count if count * length >= ROWS else batch
