"""ATS: draw tokens at equal steps of the cumulative significance, so that every image keeps its own number. Fayyaz et al., ECCV 2022, arXiv:2111.15667.

Significance is the class token's attention times the length of the value (equation 4). Samples are levels of its cumulative sum;
a token that several levels fall on is kept once, so `keep` and `tokens` bound the count of an image from above. `keep` counts from
the tokens that entered the first block, int(entered * keep^(site+1)). keep=1 draws as many samples as that at every block, also
where fewer tokens are left, as the authors do (their n_ref is one more, for the class token: 197 is keep=1 or tokens=196).

version=official (adaptivetokensampling/ATS): one norm for the values of all heads; scores are sorted before they are summed up, so
that levels fall on the most significant; with fewer samples than tokens only as many of the best are candidates.
version=tr (JoakimHaurum/TokenReduction): one norm per head; the sum runs in the order of the patches, so that survivors spread over
the image; keep=0.7,layers=3/6/9 is usual. Its levels are counted in float32 and can be one more than asked.

Deviations: tokens stay in ascending order. The authors leave dropped queries out of the product of attention and values; here the
same tokens leave after it, with the same result, at the cost of a full attention in that block. An image does not see the padding
of its batch. No lower bound of 8 tokens. All prefix tokens are protected.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..ops import reduce, select
from ..ops.attention_torch import exact
from ..ops.schedule import Layers, Schedule, as_tuple
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Version = Literal["official", "tr"]


@dataclass(frozen=True)
class Samples(Schedule):
    """Number of samples drawn at each site, independent of how many tokens an image has left."""

    def count(self, n: int, site: int, sites: int, entered: int = 0) -> int:
        if self.remove is None:
            return super().count(max(n, entered), site, sites, entered)
        amounts = as_tuple(self.remove)
        gone = sum(amounts[: site + 1]) if len(amounts) > 1 else amounts[0] * (site + 1)
        return max(1, (entered or n) - int(gone))


def significance(class_attn: Tensor, v: Tensor, prefix: int, version: Version) -> Tensor:
    """Multiply the class token's attention by the norm of the value. class_attn [B, H, N], v [B, H, P+N, D] -> [B, N]."""
    v = exact(v[:, :, prefix:])
    if version == "official":
        joined: Tensor = v.transpose(1, 2).flatten(2).norm(dim=2)
        return class_attn.sum(dim=1) * joined
    length: Tensor = v.norm(dim=3)
    return (class_attn * length).sum(dim=1)


def sampled(s: Tensor, valid: Tensor | None, count: int, version: Version) -> Plan:
    """Select the tokens by inverse transform sampling of the cumulative score at `count` levels. s [B, N], valid [B, N]."""
    valid = torch.ones_like(s, dtype=torch.bool) if valid is None else valid
    s = s.masked_fill(~valid, 0)
    s = s / s.sum(dim=1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
    if version == "tr":
        picked = nearest(s.cumsum(dim=1).masked_fill(~valid, float("inf")), spatial_levels(s, count))
    else:
        s, order = s.masked_fill(~valid, float("inf")).sort(dim=1, stable=True)
        picked = order.gather(1, nearest(*sorted_levels(s, valid.sum(dim=1, keepdim=True), count)))
    return select.chosen(torch.zeros_like(valid).scatter(1, picked, True))


def sorted_levels(s: Tensor, real: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cumulative sum from 0 to 1 of ascending scores s [B, N], of which the first real [B, 1] count, and the levels [B, L] from
    its smallest positive value to 1. Only the last L real places are candidates; before them it is -inf, behind them inf."""
    place = torch.arange(s.shape[1], device=s.device)
    padding = place >= real
    total = s.masked_fill(padding, 0).cumsum(dim=1)
    low, high = total[:, :1], total.gather(1, real - 1)
    total = ((total - low) / (high - low).clamp(min=torch.finfo(s.dtype).tiny)).masked_fill(padding, float("inf"))
    start = total.masked_fill(total == 0, float("inf")).amin(dim=1, keepdim=True).clamp(max=1)
    step = torch.arange(count, device=s.device)
    level = torch.linspace(0, 1, count, dtype=s.dtype, device=s.device)
    level = start + (level * (count - 1) - start * step) / (count - 1) if count > 1 else torch.ones_like(start)
    return total.masked_fill(place < real - count, float("-inf")), level


def spatial_levels(s: Tensor, count: int) -> Tensor:
    """Levels at the middle of count + 1 steps, the last left out but for rounding: [B, L]."""
    steps = count + 1
    return torch.arange(1 / (2 * steps), (2 * steps - 1) / (2 * steps), 1 / steps, device=s.device).to(s).expand(s.shape[0], -1)


def nearest(total: Tensor, level: Tensor) -> Tensor:
    """Index of the entry of ascending total [B, N] nearest to each level [B, L], the first of equal ones -> [B, L]."""
    above = torch.searchsorted(total, level.contiguous()).clamp(max=total.shape[1] - 1)
    below = (above - 1).clamp(min=0)
    lower, upper = total.gather(1, below), total.gather(1, above)
    closer = torch.where((level - lower).abs() <= (upper - level).abs(), lower, upper)
    return torch.searchsorted(total, closer)


@method
def ats(keep: float = 1.0, layers: Layers = (3, 4, 5, 6, 7, 8, 9, 10, 11), version: Version = "official") -> Recipe:
    plan = Samples(layers, keep=keep, compound=True)
    score = Step(significance, version=version)
    return Recipe(score, Step(sampled, version=version), reduce.drop, plan, adaptive=True)
