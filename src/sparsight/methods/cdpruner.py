"""CDPruner: keep the tokens whose determinantal point process, conditioned on the question, is most likely. Zhang et al., NeurIPS 2025, arXiv:2506.10967.

Reference: Theia-4869/CDPruner. Greedy MAP inference on the kernel diag(r) S diag(r): S is the cosine of the tokens behind the projector,
r the relevance to the text, in 0 to 1. `text=given` takes relevance from the signals `feats` (CLIP's patch embeddings in the joint
space) and `text` (its text embeddings [M, C] or [B, M, C]); `text=none` is r = 1, diversity alone. `sign=minus`, the authors': CLIP's patches are
LESS similar to the text that describes them; other encoders take `plus`. `shared=true` takes minimum and maximum over the whole batch, as the
authors' code does: an image then depends on its batch. keep= rounds up.
Deviations: kept tokens are distinct and ascending whatever the input. Norms are at least 1e-12; where all relevances are equal r is 1; where
the tokens' rank is used up, the rest is filled by relevance (the authors' code returns tokens twice).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..ops import diversity, reduce, schedule
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Sign = Literal["minus", "plus"]

FLOOR = 1e-6
"""Least relevance, and the share of the largest diagonal entry below which nothing new is left to choose."""


def relevance(feats: Tensor, text: Tensor, sign: Sign, shared: bool) -> Tensor:
    """Similarity to the text, scaled to 0 .. 1 per image or over the batch. feats [B, N, D], text [M, D] or [B, M, D] -> [B, N]."""
    likeness = (normalize(feats, dim=-1) @ normalize(text, dim=-1).transpose(-2, -1)).mean(dim=-1)
    likeness = -likeness if sign == "minus" else likeness
    low, high = likeness.amin(dim=1, keepdim=True), likeness.amax(dim=1, keepdim=True)
    if shared:
        low, high = low.amin(), high.amax()
    span = high - low
    return torch.where(span < 1e-12, 1.0, (likeness - low + FLOOR) / span.clamp(min=1e-12))


def likeliest(x: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Greedy MAP inference (Chen et al., 2018) on the kernel of x [B, N, C] and relevance [B, N] -> [B, count], in the order of choice."""
    kernel = diversity.cosine(x) * relevance.unsqueeze(-1) * relevance.unsqueeze(-2)
    gain = kernel.diagonal(dim1=-2, dim2=-1).clone()
    least = FLOOR * gain.amax(dim=1, keepdim=True)
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(-1)
    taken = torch.zeros_like(gain, dtype=torch.bool)
    parts: list[Tensor] = []
    picks: list[Tensor] = []
    for _ in range(count):
        new = gain.masked_fill(taken, float("-inf"))
        left = new.amax(dim=1, keepdim=True) > least
        pick = torch.where(left, new, relevance.masked_fill(taken, float("-inf"))).argmax(dim=1, keepdim=True)
        row = kernel[rows, pick].squeeze(1)
        if parts:
            before = torch.stack(parts, dim=1)
            row = row - (before.gather(2, pick.unsqueeze(1).expand(-1, len(parts), -1)) * before).sum(dim=1)
        part = row / gain.gather(1, pick).clamp(min=torch.finfo(gain.dtype).tiny).sqrt()
        parts.append(part.where(left, 0))
        gain = gain - parts[-1].square()
        taken = taken.scatter(1, pick, True)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def by_text(x: Tensor, feats: Tensor, text: Tensor, count: int, sign: Sign, shared: bool) -> Plan:
    return Plan(likeliest(x, relevance(feats, text, sign, shared), count).sort(dim=1).values, x.shape[1])


def by_diversity(x: Tensor, count: int) -> Plan:
    return Plan(likeliest(x, torch.ones_like(x[..., 0]), count).sort(dim=1).values, x.shape[1])


@method
def cdpruner(tokens: int = 64, text: Literal["given", "none"] = "given", sign: Sign = "minus", shared: bool = False) -> Recipe:
    choose = Step(by_text, sign=sign, shared=shared) if text == "given" else Step(by_diversity)
    return Recipe(None, choose, reduce.drop, schedule.once(tokens), where="projector")
