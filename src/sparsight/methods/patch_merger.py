"""PatchMerger: pool all tokens into a few by learned queries. Renggli et al., Learning to Merge Tokens in Vision Transformers, 2022, arXiv:2202.12015.

Reference: the Token Reduction benchmark (JoakimHaurum/TokenReduction), whose counts are int(patches * keep^(site + 1)), before the block.
LayerNorm (eps 1e-5), softmax over the tokens of queries times tokens (no scale, one head), weighted sum of the NORMALISED tokens.
Learned weights per site: `queries` [K, C], `norm.weight` [C], `norm.bias` [C].
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ..ops import pool, select
from ..ops.reduce import Tokens
from ..ops.schedule import Layers, Schedule
from ..plan import Plan
from ..recipe import Recipe, Weight
from ..registry import method


def declared(width: int, count: int) -> dict[str, Weight]:
    return {"queries": Weight((count, width)), "norm.weight": Weight((width,), 0.0, 1.0), "norm.bias": Weight((width,), 0.0)}


def normalised(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights["norm.weight"], weights["norm.bias"])


def assign(x: Tensor, weights: dict[str, Tensor], count: int) -> Plan:
    """Assign tokens x [B, N, C] to queries by a softmax over tokens."""
    if count >= x.shape[1]:
        return select.everything(x)
    logits = weights["queries"] @ normalised(x, weights).transpose(-2, -1)
    return pool.soft_plan(torch.softmax(logits, dim=-1))


def pool_normalised(x: Tensor, plan: Plan, size: Tensor | None, weights: dict[str, Tensor]) -> Tokens:
    """Pool the normalised tokens; leave them unchanged if none is to go."""
    if plan.mix is None:
        return pool.pooled(x, plan, size)
    tokens, sizes = pool.pooled(normalised(x.to(plan.mix.dtype), weights), plan, size)
    return tokens.to(x.dtype), sizes


@method
def patch_merger(keep: float = 0.7, layers: Layers = (3, 6, 9)) -> Recipe:
    return Recipe(None, assign, pool_normalised, Schedule(layers, keep=keep, compound=True), where="before", weights=declared)
