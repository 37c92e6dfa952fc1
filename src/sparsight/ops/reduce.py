"""Reducers: tokens, their sizes and a Plan in, fewer tokens and their sizes out. x [B, N, C], size [B, N, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Plan

Tokens = tuple[Tensor, Tensor]


def drop(x: Tensor, plan: Plan, size: Tensor) -> Tokens:
    """Survivors as they are; the others vanish. -> [B, K, C], [B, K, 1]."""
    return plan.gather(x), plan.gather(size)


def fuse_rest(x: Tensor, plan: Plan, size: Tensor, s: Tensor) -> Tokens:
    """Survivors, then one token that is the sum of the others weighted by their (not normalised) scores s [B, N].
    EViT eq. 4, arXiv:2202.07800. -> [B, K+1, C], [B, K+1, 1]."""
    kept, kept_size = drop(x, plan, size)
    if not plan.fused:
        return kept, kept_size
    rest = plan.dropped()
    weight = s.gather(1, rest).unsqueeze(1).to(x.dtype)
    token = weight @ x.gather(1, rest.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    count = size.gather(1, rest.unsqueeze(-1)).sum(dim=1, keepdim=True)
    return torch.cat([kept, token], dim=1), torch.cat([kept_size, count], dim=1)


def merge_sized(x: Tensor, plan: Plan, size: Tensor) -> Tokens:
    """Mean of the tokens in every slot, weighted by how many tokens each one stands for. -> [B, K, C], [B, K, 1]."""
    total = plan.fold(size)
    return (plan.fold(x * size.to(x.dtype)) / total.to(x.dtype)), total
