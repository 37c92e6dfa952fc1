"""Soft pooling: every slot is a mixture of all tokens, by weights that are learned. x [B, N, C], mix [B, K, N]."""

from __future__ import annotations

from torch import Tensor

from ..plan import Plan
from . import reduce


def soft_plan(mix: Tensor) -> Plan:
    """The plan of a soft pooler. A token's owner is the slot that takes the largest share of it; `keep` names the heaviest token
    of each slot, which may be the same for several. mix [B, K, N]."""
    return Plan(mix.argmax(dim=2), mix.shape[2], mix.argmax(dim=1), mix=mix)


def pooled(x: Tensor, plan: Plan, size: Tensor | None) -> reduce.Tokens:
    """Mixtures of tokens; a slot's size is its share of every token's, so that sizes sum to the number of patches.
    -> [B, K, C], [B, K, 1]. Without a mix all tokens stay as they are."""
    if plan.mix is None:
        return reduce.drop(x, plan, size)
    mix = plan.mix.to(x.dtype)
    share = (mix / mix.sum(dim=1, keepdim=True)).detach()
    return mix @ x, share @ reduce.sizes(x, size).to(x.dtype)
