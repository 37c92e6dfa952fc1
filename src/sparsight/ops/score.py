"""Token scores: signals in, s [B, N] out, higher = keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..errors import PruneError, shown
from . import attention
from .attention_shared import Attended
from .portable import cdist, tracing
from .schedule import check_share

Function = TypeVar("Function", bound=Callable[..., Tensor])

Metric = Literal["cosine", "l2", "dot"]

Importance = Literal["class", "col_ln", "column_mean"]
"""Class token's row; p-norm of the column (Col-Ln); mean of the column, what ports to encoders without class token use."""

PAIRS = 1 << 20
"""Pairs of tokens of one image that are compared at once: a matrix of them takes 4 MiB. Up to 1,024 tokens are one piece."""


@dataclass(frozen=True)
class Named:
    """A score by name: the function, and those of its numbers that the name fixes."""

    function: Callable[..., Tensor]
    numbers: dict[str, Any]


SCORES: dict[str, Named] = {}
"""Scores that `compose` offers, by name."""


def register_score(name: str, **numbers: Any) -> Callable[[Function], Function]:
    """Decorator that offers a function as `compose:score=NAME`.

    The function's parameters without a default are signals, and it returns s [B, N], higher = keep. Parameters with a default are
    numbers: `order` and `seed` are taken from the recipe, others keep their default, or the value given here. Raises PruneError for
    a name that is taken or that a recipe cannot hold.
    """
    if not name.isidentifier() or name == "none":
        raise PruneError(f"a score's name is one word of letters, digits and _, got '{shown(name)}'")

    def register(function: Function) -> Function:
        known = SCORES.get(name)
        if known is not None and (known.function.__module__, known.function.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise PruneError(f"score {name!r} is already registered by {known.function.__module__}")
        SCORES[name] = Named(function, numbers)
        return function

    return register


def check_order(order: float) -> float:
    """Validate the order of a norm or entropy (> 0, infinity allowed)."""
    if not order > 0:
        raise PruneError(f"order={order:g} must be above 0 (inf is allowed)")
    return order


def check_rescue(rescue: float, score: str) -> float:
    """Validate the share of the slots that a method gives to Col-Ln beside class attention."""
    if check_share("rescue", rescue) and score != "class":
        raise PruneError(f"rescue={rescue:g} corrects class attention; leave out score={score} or rescue")
    return rescue


@register_score("class_attention")
def class_attention(class_attn: Tensor) -> Tensor:
    """Average the class token's attention over heads. class_attn [B, H, N] -> [B, N]."""
    return class_attn.mean(dim=1)


@register_score("col_ln")
def column_norm(
    q: Tensor,
    k: Tensor,
    prefix: int,
    scale: float,
    order: float = 2.0,
    heads: attention.Heads = "mean",
    rows: attention.Rows = "patches",
    diagonal: bool = True,
    stride: int = 1,
    attended: Attended | None = None,
) -> Tensor:
    """p-norm of each patch's attention column (Col-Ln, eq. 3), from every stride-th query row. q, k [B, H, P+N, D] -> [B, N]."""
    return attention.column_norm(q, k, prefix, scale, order, heads, rows, diagonal, stride=stride, attended=attended)


@register_score("column_mean")
def column_mean(q: Tensor, k: Tensor, prefix: int, scale: float) -> Tensor:
    """Mean attention that each patch receives from the patches. q, k [B, H, P+N, D] -> [B, N]."""
    return attention.column_mean(q, k, prefix, scale)


def received(token_weight: Tensor) -> Tensor:
    """Attention that each patch receives, summed over heads and all queries. token_weight [B, N] -> [B, N]."""
    return token_weight


def joined(x: Tensor) -> Tensor:
    """Merge all heads into one, undoing the split into heads. x [B, H, L, D] -> [B, 1, L, H*D]."""
    return x.transpose(1, 2).flatten(2).unsqueeze(1)


def single_head(q: Tensor, k: Tensor, prefix: int, kind: Importance, order: float = 2.0) -> Tensor:
    """Compute the named score with all heads merged into one of width C, logits scaled by C^-0.5.
    q, k [B, H, P+N, D] -> [B, N]. PruMerge, arXiv:2403.15388."""
    scale = (q.shape[1] * q.shape[3]) ** -0.5
    if kind == "column_mean":
        return column_mean(joined(q), joined(k), prefix, scale)
    if kind == "col_ln":
        return column_norm(joined(q), joined(k), prefix, scale, order)
    if prefix < 1:
        raise PruneError("score=class needs a class token in front of the patches; try score=column_mean")
    return attention.class_row(joined(q[:, :, :1]), joined(k), prefix, scale)[:, 0]


@register_score("renyi")
@register_score("shannon", order=1.0)
def low_entropy(q: Tensor, k: Tensor, prefix: int, scale: float, attended: Attended | None = None, order: float = 2.0) -> Tensor:
    """Negated entropy of each patch's attention row: focused patches score high. q, k [B, H, P+N, D] -> [B, N]."""
    return -attention.row_entropy(q, k, prefix, scale, order, attended=attended)


@register_score("similarity")
def distinctness(feats: Tensor, valid: Tensor | None, metric: Metric = "cosine") -> Tensor:
    """Negated mean similarity to all other patches. feats [B, N, D], valid [B, N] or None (all) -> [B, N]."""
    others: Tensor | int = max(1, feats.shape[1] - 1)
    if valid is not None:
        others = (valid.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    if metric == "l2":
        rows = (cdist(feats[:, here], feats) for here in pieces(feats.shape[1]))
        return torch.cat([(row if valid is None else row * valid.unsqueeze(1)).sum(dim=-1) for row in rows], dim=1) / others
    feats = comparable(feats, metric)
    feats = feats if valid is None else feats * valid.unsqueeze(-1)
    # the sum over j of x_i . x_j is x_i . sum_j x_j: no N x N matrix
    return -(feats * (feats.sum(dim=1, keepdim=True) - feats)).sum(dim=-1) / others


def local_distinctness(
    feats: Tensor,
    valid: Tensor | None,
    position: Tensor,
    grid: tuple[int, int],
    metric: Metric = "cosine",
    diversity: float = 1.0,
) -> Tensor:
    """Negated mean similarity to the other patches, weighted by a Gaussian of their distance on the grid.

    feats [B, N, D], valid [B, N] or None, position [B, N] -> [B, N]; diversity is the Gaussian's sigma in patches. Fused tokens have
    no place on the grid (position -1) and are compared with all others alike.
    """
    feats = comparable(feats, metric)
    place = torch.stack([position.div(grid[1], rounding_mode="floor"), position % grid[1]], dim=-1).to(feats)
    found = []
    for here in pieces(feats.shape[1]):
        rows = feats[:, here]
        similarity = -cdist(rows, feats) if metric == "l2" else rows @ feats.transpose(-2, -1)
        weight = nearness(place, diversity, here)
        weight = weight if valid is None else weight * valid.unsqueeze(1)
        found.append(-(weight * similarity).sum(dim=-1) / weight.sum(dim=-1).clamp(min=torch.finfo(weight.dtype).tiny))
    return torch.cat(found, dim=1)


def pieces(n: int) -> Iterator[slice]:
    """Iterate over row slices of an N x N matrix of at most `PAIRS` elements."""
    step = max(1, PAIRS // n)
    return (slice(start, start + step) for start in range(0, n, step))


def nearness(place: Tensor, sigma: float, here: slice) -> Tensor:
    """Gaussian of grid distance between some tokens and all; 1 for tokens without a position (row -1), 0 on the diagonal.
    place [B, N, 2] -> [B, rows, N]"""
    nowhere = place[..., 0] < 0
    apart = cdist(place[:, here], place).square()
    apart = apart.masked_fill(nowhere[:, here].unsqueeze(-1) | nowhere.unsqueeze(-2), 0)
    index = torch.arange(place.shape[1], device=place.device)
    return torch.exp(-apart / (2 * sigma**2)).masked_fill(index[here].unsqueeze(-1) == index, 0)


def comparable(feats: Tensor, metric: Metric) -> Tensor:
    """Normalise features for the cosine; leave them unchanged otherwise."""
    return torch.nn.functional.normalize(feats, dim=-1) if metric == "cosine" else feats


Whole = TypeVar("Whole", int, Tensor)


def mixed(index: Whole, n: int, seed: int) -> Whole:
    """A number of 32 bits from index, token count and seed: the finaliser of MurmurHash3."""
    word = (index + ((seed * 0x9E3779B1 + n * 0x85EBCA77) & 0xFFFFFFFF)) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = ((word ^ (word >> shift)) * factor) & 0xFFFFFFFF
    return word


@register_score("random")
def noise(x: Tensor, seed: int = 0) -> Tensor:
    """Uniform random numbers from a counter: a function of seed, token count and index alone. x [B, N, C] -> [B, N].

    All images of a batch get the same numbers, so that the result for an image does not depend on its batch.
    Integer mixing (the finaliser of MurmurHash3) instead of a generator: equal on every device, in compiled graphs too.
    """
    n = int(x.shape[1])
    if tracing() and x.device.type == "cpu":  # as a constant: engines for CPUs compute in 32 bits
        word = torch.tensor([mixed(index, n, seed) for index in range(n)], dtype=torch.int64)
    else:
        word = mixed(torch.arange(n, device=x.device, dtype=torch.int64), n, seed)
    return (word.to(torch.float32) / 2**32).expand(x.shape[0], n)
