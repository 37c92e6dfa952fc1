"""HoloV: share the tokens out among crops of the image by their attention. NeurIPS 2025, arXiv:2510.02912.

Reference: the authors' repository (1d2e65e). Crops are runs of the flattened raster, no windows. A crop's score is the mean of
1000 * class attention and `alpha` times the scaled variance of similarities within it (which the scaling cancels but for 1e-6); its quota is its
share of the tokens, and the best by class attention fill it. `overflow=next` (default) gives what does not fit in a crop to the next ones in
order of score; `authors` loses it: fewer tokens are left (their code pads with zero vectors). `order=authors` puts tokens out crop by crop,
most attended first, instead of in spatial order. `crops` 16 as in their repository; they say that it matters. keep= rounds up.
`score=column_mean` or `col_ln` (with `norm`) is for encoders without class token. Deviation: ties go to the lower index.
"""

from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import reduce, schedule, select
from ..ops.portable import diagonal, stable_order
from ..ops.score import Importance
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method

Overflow = Literal["next", "authors"]
Order = Literal["spatial", "authors"]

EPS = 1e-6
FACTOR = 1000.0


def crop_score(a: Tensor, x: Tensor, alpha: float) -> Tensor:
    """Score one crop by attention a [B, n] and tokens x [B, n, C] -> [B]."""
    n = a.shape[1]
    if n == 1:
        return a[:, 0]
    unit = x / (x.norm(dim=-1, keepdim=True) + EPS)
    likeness = unit @ unit.transpose(-2, -1)
    likeness = likeness.masked_fill(diagonal(n, a.device), 0)
    mean = likeness.sum(dim=-1, keepdim=True) / (n - 1)
    variance = (likeness - mean).square().sum(dim=-1) / (n - 1)
    scaled = FACTOR * a
    factor = scaled.abs().mean(dim=1, keepdim=True) / (variance.abs().mean(dim=1, keepdim=True) + EPS)
    found: Tensor = (scaled + alpha * factor * variance).mean(dim=1)
    return found


def quotas(score: Tensor, sizes: Tensor, count: int, overflow: Overflow) -> Tensor:
    """Allocate the tokens to crops by score [B, P] and sizes [P]: [B, P] int64."""
    share = score / (score.sum(dim=1, keepdim=True) + EPS)
    quota = (share * count).floor().long()
    ranked = stable_order(share, descending=True)
    place = select.slots(ranked, ranked.shape[1])
    quota = quota + (place < count - quota.sum(dim=1, keepdim=True))
    fitting = torch.minimum(quota, sizes)
    if overflow == "authors":
        return fitting
    room = (sizes - fitting).gather(1, ranked)
    more = (count - fitting.sum(dim=1, keepdim=True) - (room.cumsum(dim=1) - room)).clamp(min=0)
    return fitting.scatter_add(1, ranked, torch.minimum(room, more))


def by_crops(s: Tensor, x: Tensor, count: int, crops: int, alpha: float, overflow: Overflow, order: Order) -> Plan:
    """Keep the highest s [B, N] of every crop of x [B, N, C], up to its quota."""
    n = s.shape[1]
    if count >= n:
        return select.everything(s)
    crops = min(crops, n)
    sizes = torch.full((crops,), n // crops, device=s.device) + (torch.arange(crops, device=s.device) < n % crops)
    pieces = [n // crops + (piece < n % crops) for piece in range(crops)]
    score = torch.stack(
        [
            crop_score(a, tokens, alpha)
            for a, tokens in zip(torch.split(s, pieces, dim=1), torch.split(x, pieces, dim=1), strict=True)
        ],
        dim=1,
    )
    quota = quotas(score, sizes, count, overflow)
    rank = torch.cat([select.ranks(a) for a in torch.split(s, pieces, dim=1)], dim=1)
    crop = torch.arange(crops, device=s.device).repeat_interleave(sizes, output_size=n)
    wanted = rank < quota.index_select(1, crop)
    if order == "spatial":
        return select.chosen(wanted)
    place = torch.arange(n, device=s.device)
    start = torch.arange(crops, device=s.device) * (n // crops) + torch.arange(crops, device=s.device).clamp(max=n % crops)
    whole = (quota >= sizes).index_select(1, crop)
    key = torch.where(whole, place, start.index_select(0, crop) + rank).masked_fill(~wanted, n)
    keep = select.chosen(wanted)
    ordered = stable_order(key)[:, : keep.keep.shape[1]]
    return Plan(ordered.masked_fill(keep.keep < 0, -1), n, valid=keep.valid)


@method
def holov(
    tokens: int = 64,
    crops: int = 16,
    alpha: float = 0.09,
    overflow: Overflow = "next",
    order: Order = "spatial",
    score: Importance = "class",
    norm: float = 2.0,
) -> Recipe:
    if crops < 1 or not 0 <= alpha < float("inf"):
        raise PruneError(f"crops={crops}, alpha={alpha:g}: give at least one crop, and a finite alpha of 0 or more")
    choose = Step(by_crops, crops=crops, alpha=alpha, overflow=overflow, order=order)
    return Recipe(attention_score(score, norm), choose, reduce.drop, schedule.once(tokens), where="projector")
