"""Soft pooling: every slot is a mixture of all tokens, by weights that are learned. x [B, N, C], mix [B, K, N]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PruneError
from ..plan import Plan
from . import reduce


def soft_plan(mix: Tensor) -> Plan:
    """The plan of a soft pooler. A token's owner is the slot that takes the largest share of it; `keep` names the heaviest token
    of each slot, which may be the same for several. mix [B, K, N], not negative.

    K is that of the learned weights, whatever the size of the image; a PruneError where fewer tokens arrive than there are slots."""
    if mix.shape[1] > mix.shape[2]:
        raise PruneError(
            f"the learned weights pool into {mix.shape[1]} tokens, but only {mix.shape[2]} arrive; use the image size they were made for"
        )
    return Plan(mix.argmax(dim=2), mix.shape[2], mix.argmax(dim=1), mix=mix)


def transported(likeness: Tensor, sharpness: float, rounds: int) -> Tensor:
    """Entropic optimal transport between slots and tokens of equal mass, in the log domain: likeness [B, K, N] -> [B, K, N].

    Rows and columns of exp(likeness / sharpness) are scaled in turn, `rounds` times, to sums of 1 / (K + N), columns last; the answer
    is (K + N) times that, so that every token gives away 1 in all. Sinkhorn distances, Cuturi, arXiv:1306.0895.
    """
    logits = likeness / sharpness
    column = torch.zeros_like(logits[:, :1])
    row = torch.zeros_like(logits[:, :, :1])
    for _ in range(rounds):
        row = -(logits + column).logsumexp(dim=2, keepdim=True)
        column = -(logits + row).logsumexp(dim=1, keepdim=True)
    return (logits + row + column).exp()


def pooled(x: Tensor, plan: Plan, size: Tensor | None) -> reduce.Tokens:
    """Mixtures of tokens; a slot's size is its share of every token's, so that sizes sum to the number of patches.
    -> [B, K, C], [B, K, 1]. Without a mix all tokens stay as they are."""
    if plan.mix is None:
        return reduce.drop(x, plan, size)
    mix = plan.mix.to(torch.promote_types(plan.mix.dtype, x.dtype))
    share = (mix / mix.sum(dim=1, keepdim=True)).detach()
    return (mix @ x.to(mix.dtype)).to(x.dtype), share @ reduce.sizes(x, size).to(mix.dtype)
