"""How far attention reaches: the distance on the image between a patch and those that it attends to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from . import attention
from .attention_torch import exact, pieces


def attention_distance(
    q: Tensor, k: Tensor, prefix: int, scale: float, grid: tuple[int, int], patch: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Mean distance between a patch and the patches it attends to, weighted by attention; patch (h, w) is a patch's size, in whose
    unit the distance comes, pixels say. q, k [B, H, P+N, D] in the order of the grid -> [B, H, N].

    Between the centres of patches; attention on prefix tokens, which have no place, is left out and the rest sums to 1. Memory is that of
    one block of rows. Dosovitskiy et al., ICLR 2021, appendix D.7, arXiv:2010.11929; figure 6 of the Renyi entropy paper.
    """
    work = attention.cut(attention.setting(q, k[:, :, prefix:], scale, None, None), prefix, 1).full_keys()
    work = replace(work, q=exact(work.q), k=exact(work.k))
    place = centres(grid, patch).to(work.q)
    # filled in place: small results kept between the pieces would cut the heap up, which then grows to the size of the matrix
    found = work.q.new_empty(work.q.shape[:3])
    for image, here, logits in pieces(work):
        found[image : image + logits.shape[0], :, here] = (logits.softmax(-1) * apart(place[here], place)).sum(-1)
    return found


def centres(grid: tuple[int, int], patch: tuple[float, float]) -> Tensor:
    """Centre (y, x) of every patch, row by row: [N, 2]."""
    y, x = (size * (torch.arange(count) + 0.5) for count, size in zip(grid, patch, strict=True))
    return torch.stack([y.repeat_interleave(grid[1]), x.repeat(grid[0])], dim=-1)


def uniform_distance(grid: tuple[int, int], patch: tuple[float, float]) -> float:
    """Mean distance of attention that is spread evenly over all patches."""
    place = centres(grid, patch).double()
    return float(apart(place, place).mean())


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances without the rounding of a matrix product. a [M, 2], b [N, 2] -> [M, N]."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
