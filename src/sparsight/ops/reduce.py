"""Reducers: tokens, their sizes and a Plan in, fewer tokens and their sizes out. x [B, N, C], size [B, N, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Plan

Tokens = tuple[Tensor, Tensor | None]


def drop(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Survivors as they are; the others vanish. -> [B, K, C], [B, K, 1]; size None (every token one patch) stays None."""
    return plan.gather(x), None if size is None else plan.gather(size)


def fuse_rest(x: Tensor, plan: Plan, size: Tensor | None, s: Tensor) -> Tokens:
    """Survivors, then one token that is the sum of the others weighted by their (not normalised) scores s [B, N].
    EViT eq. 4, arXiv:2202.07800. -> [B, K+1, C], [B, K+1, 1]."""
    size = sizes(x, size)
    kept, kept_size = plan.gather(x), plan.gather(size)
    if not plan.fused:
        return kept, kept_size
    rest = Plan(plan.dropped(), plan.total)
    weight = s.gather(1, rest.keep).unsqueeze(1).to(x.dtype)
    count = rest.gather(size).sum(dim=1, keepdim=True)
    return torch.cat([kept, weight @ rest.gather(x)], dim=1), torch.cat([kept_size, count], dim=1)


def fuse_rest_evenly(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Survivors, then one token that is the mean of the others, weighted by size. -> [B, K+1, C], [B, K+1, 1]."""
    size = sizes(x, size)
    rest = size if not plan.fused else Plan(plan.dropped(), plan.total).gather(size)
    return fuse_rest(x, plan, size, size.squeeze(-1) / rest.sum(dim=1))


def fuse_rest_by_class(x: Tensor, plan: Plan, size: Tensor | None, class_attn: Tensor) -> Tokens:
    """`fuse_rest` with the class token's attention as weights, whatever chose the survivors. class_attn [B, H, N]."""
    return fuse_rest(x, plan, size, class_attn.mean(dim=1))


def merge_sized(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Mean of the tokens in every slot, weighted by how many tokens each one stands for. -> [B, K, C], [B, K, 1]."""
    size = sizes(x, size)
    total = plan.fold(size)
    return plan.fold(x * size.to(x.dtype)) / total.to(x.dtype), total


def representatives(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Survivors as they are; each one stands for all tokens of its cluster. -> [B, K, C], [B, K, 1]."""
    return plan.gather(x), plan.fold(sizes(x, size))


def sizes(x: Tensor, size: Tensor | None) -> Tensor:
    """How many patches each token stands for; one each if nothing has been merged yet. x [B, N, C] -> [B, N, 1]."""
    if size is not None:
        return size
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return torch.ones(x.shape[0], x.shape[1], 1, dtype=dtype, device=x.device)


def mixture(x: Tensor, plan: Plan, size: Tensor | None) -> Tokens:
    """Every slot the sum of tokens by the weights in plan.mix; survivors as they are if there are none.
    -> [B, slots, C], [B, slots, 1]."""
    if plan.mix is None:
        return drop(x, plan, size)
    return (plan.mix @ x.to(plan.mix.dtype)).to(x.dtype), plan.fold(sizes(x, size))
