"""SCOPE: keep the tokens that cover the others best, weighted by class attention. NeurIPS 2025, arXiv:2510.24214.

Greedy: a token's gain is what it adds to the sum over all tokens of the largest cosine with a chosen one (of encoder features; negative
cosines count as 0), times the class token's attention to the power `alpha`. Written from the published formulas; the authors' repository
has no licence. Pruned before the projector, in spatial order. `score=column_mean` or `col_ln` with `order` is for encoders without class
token. keep= rounds up. Deviation: where everything is covered already, attention fills the rest (the authors' code takes the lowest indices).
"""

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import diversity, reduce, schedule
from ..ops.score import Importance
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method

COVERED = 1e-5
"""Gains below it are rounding."""


def cover(s: Tensor, feats: Tensor, count: int, alpha: float) -> Plan:
    """Greedy coverage of feats [B, N, D], weighted by s [B, N] to the power alpha."""
    likeness = diversity.cosine(feats).clamp_(min=0)
    rows = torch.arange(s.shape[0], device=s.device).unsqueeze(-1)
    weight = s.pow(alpha)
    covered, taken, picks = torch.zeros_like(s), torch.zeros_like(s, dtype=torch.bool), []
    for _ in range(count):
        gain = (likeness - covered.unsqueeze(1)).clamp_(min=0).sum(dim=-1).masked_fill(taken, 0)
        new = gain.amax(dim=1, keepdim=True) > COVERED
        pick = torch.where(new, gain * weight, s).masked_fill(taken, float("-inf")).argmax(dim=1, keepdim=True)
        covered = torch.maximum(covered, likeness[rows, pick].squeeze(1))
        taken = taken.scatter(1, pick, True)
        picks.append(pick)
    return Plan(torch.cat(picks, dim=1).sort(dim=1).values, s.shape[1])


@method
def scope(tokens: int = 64, alpha: float = 1.0, score: Importance = "class", order: float = 2.0) -> Recipe:
    if not 0 <= alpha < float("inf"):
        raise PruneError(f"alpha={alpha:g} must be 0 (coverage alone) or more, and finite")
    return Recipe(attention_score(score, order), Step(cover, alpha=alpha), reduce.drop, schedule.once(tokens), where="encoder")
