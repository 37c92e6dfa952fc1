"""Scatter the remaining tokens back to the full patch grid, for segmentation, depth and feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PruneError
from ..plan import Plan
from .select import rows


def restore(plan: Plan, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Scatter the tokens of a plan back to the patches it started from: x [B, slots, C] -> [B, N, C].

    A token that was merged or fused gets its slot's value, a dropped one that of its nearest survivor on the grid (h, w) with
    h * w = N: Euclidean distance, ties to the survivor of the lower index. Where slots are mixtures (plan.mix), every patch gets
    the mean of the slots, weighted by what each took from it. Raises PruneError where the sizes do not fit.
    """
    if x.shape[:2] != (plan.keep.shape[0], plan.slots):
        raise PruneError(f"tokens must be [B, K, C] with B={plan.keep.shape[0]} and K={plan.slots}, got {list(x.shape)}")
    if plan.mix is not None:
        share = plan.mix.to(x.dtype)
        share = share / share.sum(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return share.transpose(1, 2) @ x
    owner = plan.owner
    slot = owner.where(owner >= 0, nearest(plan, grid))
    return rows(x, slot)


def nearest(plan: Plan, grid: tuple[int, int]) -> Tensor:
    """Slot of the nearest kept patch on the grid, for every patch: [B, N]."""
    h, w = grid
    if h * w != plan.total:
        raise PruneError(f"a grid of {h} x {w} does not hold the {plan.total} tokens that the plan started from")
    patch = torch.arange(plan.total, device=plan.keep.device)
    keep = plan.keep.unsqueeze(1)
    down = patch.div(w, rounding_mode="floor")[:, None] - keep.div(w, rounding_mode="floor")
    right = (patch % w)[:, None] - keep % w
    apart = (down.square() + right.square()) * plan.total + keep
    return apart.masked_fill(keep < 0, torch.iinfo(torch.int64).max).argmin(dim=-1) + int(plan.led)
