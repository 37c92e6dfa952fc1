"""DART: keep the image tokens least like a few pivots, inside the language model. Wen et al., EMNLP 2025, arXiv:2502.11494.

Reference: the authors' code as VTC-Bench (983e443) has it. Pivots are the `pivots` image tokens, and as many text tokens behind the image,
whose keys (of the layer before, after RoPE) have the largest L1 norm. In turn each pivot takes the image tokens, of those that are left,
whose states after the model's last norm have the smallest cosine with its own. No attention is asked for; survivors keep their position ids.
`count=exact` shares the budget out evenly, the remainder to the first pivots; `count=authors` is theirs: pivots + 2 * pivots * floor(tokens / (2 * pivots)).
Deviations: pivots take their turns in the order of the prompt (the authors' order is that of a set of numbers in Python); fewer text tokens
than pivots, several images and batches work; without text behind the image all text counts.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import PruneError
from ..ops import reduce, select
from ..ops.portable import stable_order
from ..ops.text import DecoderSchedule, Positions
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Count = Literal["exact", "authors"]


def longest(k: Tensor, count: int) -> Tensor:
    """Indices of the tokens with the largest L1 norm of their keys k [B, H, N, D], at most `count`: [B, K], ascending."""
    return select.best(k.abs().sum(dim=(1, 3), dtype=torch.promote_types(k.dtype, torch.float32)), count)


def shares(count: int, n: int, own: int, pivots: int, counting: Count, asked: int) -> list[int]:
    """Tokens that each pivot takes of n, of which `own` are pivots themselves. asked: pivots of each kind that the recipe wants."""
    if counting == "exact":
        each, more = divmod(count - own, pivots)
        return [each + (turn < more) for turn in range(pivots)]
    each, left = count // (2 * asked), n - own
    return [max(0, min(each, left - turn * each)) for turn in range(pivots)]


def least_alike(feats: Tensor, own: Tensor, pivots: Tensor, takes: list[int]) -> Plan:
    """Keep the tokens `own` [B, P] of feats [B, N, C], and those that pivots [B, Q, C] take in turn, so many each."""
    likeness = normalize(pivots, dim=-1) @ normalize(feats, dim=-1).transpose(-2, -1)
    taken = torch.zeros_like(likeness[:, 0], dtype=torch.bool).scatter(1, own, True)
    for turn, take in enumerate(takes):
        farthest = stable_order(likeness[:, turn].masked_fill(taken, float("inf")))[:, :take]
        taken = taken.scatter(1, farthest, True)
    return Plan(select.best(taken.to(torch.float32), own.shape[1] + sum(takes)), feats.shape[1])


def by_pivots(feats: Tensor, k: Tensor, text: Tensor, text_k: Tensor, count: int, pivots: int, counting: Count) -> Plan:
    """feats [B, N, C] and keys k [B, H, N, D] of the image tokens, text [B, T, C] and text_k [B, H, T, D] of the text behind them."""
    n = feats.shape[1]
    if count >= n:
        return select.everything(feats)
    own = longest(k, pivots if counting == "authors" else min(pivots, count))
    others = longest(text_k, pivots)
    chosen = torch.cat([select.rows(feats, own), select.rows(text, others)], dim=1)
    return least_alike(feats, own, chosen, shares(count, n, own.shape[1], chosen.shape[1], counting, pivots))


@method
def dart(tokens: int = 128, layer: int = 2, pivots: int = 4, count: Count = "exact", positions: Positions = "original") -> Recipe:
    if pivots < 1:
        raise PruneError(f"pivots={pivots} must be 1 or more")
    where = DecoderSchedule((layer,), tokens=tokens, rounding="down", positions=positions)
    return Recipe(None, Step(by_pivots, pivots=pivots, counting=count), reduce.drop, where, where="decoder")
