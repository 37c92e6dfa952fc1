"""Token scores: signals in, s [B, N] out, higher = keep."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from . import attention

Metric = Literal["cosine", "l2", "dot"]


def check_order(order: float) -> float:
    """The order of a norm or an entropy, if it is one: any positive number, infinity too."""
    if not order > 0:
        raise PruneError(f"order={order:g} must be above 0 (inf is allowed)")
    return order


def class_attention(class_attn: Tensor) -> Tensor:
    """Mean over heads of the attention that the class token pays. class_attn [B, H, N] -> [B, N]."""
    return class_attn.mean(dim=1)


def column_norm(
    q: Tensor,
    k: Tensor,
    prefix: int,
    scale: float,
    order: float = 2.0,
    heads: attention.Heads = "mean",
    rows: attention.Rows = "patches",
    diagonal: bool = True,
) -> Tensor:
    """p-norm of each patch's attention column (Col-Ln, eq. 3). q, k [B, H, P+N, D] -> [B, N]."""
    return attention.column_norm(q, k, prefix, scale, order, heads, rows, diagonal)


def low_entropy(q: Tensor, k: Tensor, prefix: int, scale: float, order: float = 2.0) -> Tensor:
    """Negated entropy of each patch's attention row: focused patches score high. q, k [B, H, P+N, D] -> [B, N]."""
    return -attention.row_entropy(q, k, prefix, scale, order)


def distinctness(
    feats: Tensor, position: Tensor, grid: tuple[int, int] | None, metric: Metric = "cosine", diversity: float = 0.0
) -> Tensor:
    """Negated mean similarity to the other patches. feats [B, N, D], position [B, N] -> [B, N].

    diversity is the radius sigma, in patches, of a Gaussian that weighs the others by their distance on the grid; 0 = all alike.
    Fused tokens have no place on the grid (position -1) and are then compared with all others alike.
    """
    n = feats.shape[1]
    if metric == "cosine":
        feats = torch.nn.functional.normalize(feats, dim=-1)
    if not diversity and metric != "l2":
        others = (feats * (feats.sum(dim=1, keepdim=True) - feats)).sum(dim=-1)
        return -others / max(1, n - 1)
    similarity = -torch.cdist(feats, feats) if metric == "l2" else feats @ feats.transpose(-2, -1)
    weight = similarity.new_ones(n, n).fill_diagonal_(0)
    if diversity:
        assert grid is not None
        place = torch.stack([position.div(grid[1], rounding_mode="floor"), position % grid[1]], dim=-1).to(similarity)
        apart = torch.cdist(place, place).square()
        placeless = (position < 0).unsqueeze(-1) | (position < 0).unsqueeze(-2)
        weight = weight * torch.exp(-apart.masked_fill(placeless, 0) / (2 * diversity**2))
    total = (weight * similarity).sum(dim=-1)
    return -total / weight.expand_as(similarity).sum(dim=-1).clamp(min=torch.finfo(total.dtype).tiny)


def noise(x: Tensor, seed: int = 0) -> Tensor:
    """Uniform random numbers from a counter: a function of seed, token count and index alone. x [B, N, C] -> [B, N].

    All images of a batch get the same numbers, so that the result for an image does not depend on its batch.
    Integer mixing (the finaliser of MurmurHash3) instead of a generator: equal on every device, in compiled graphs too.
    """
    n = x.shape[1]
    start = (seed * 0x9E3779B1 + n * 0x85EBCA77) & 0xFFFFFFFF
    word = (torch.arange(n, device=x.device, dtype=torch.int64) + start) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = ((word ^ (word >> shift)) * factor) & 0xFFFFFFFF
    return (word.to(torch.float64) / 2**32).to(torch.float32).expand(x.shape[0], n)
