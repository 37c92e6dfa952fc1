"""DynamicViT: a small predictor at every site says which tokens to keep. Rao et al., NeurIPS 2021, arXiv:2106.02034.

Reference: raoyongming/DynamicViT. Before the block; counts are int(patches * keep^(site + 1)). Learned weights per site, named as there
(their `score_predictor.0.` is the first site's `0.`): LayerNorm (eps 1e-5), Linear and GELU; the second half of the channels is
replaced by its mean over the tokens that are left (equation 2); a perceptron C, C/2, C/4, 2; log-softmax. The score is the first channel.
In training (`model.train()`) no token leaves: a Gumbel-softmax draws for each whether it stays (temperature 1, hard, with the gradient
of the soft choice), decisions multiply up over the sites, and later attention sees a dropped token only from itself (equation 11).
`handle.ratio_loss()` is the loss that brings the kept share to the budget (equation 16); distillation is the user's.
`handle.outcomes[i].size` [B, N, 1] are the decisions of the last training forward.

Deviations: kept tokens stay in ascending order; attention hides tokens by log(decision + 1e-12) added to the logits instead of their
eps 1e-6 in a softmax of its own; average pooling ignores hidden tokens. Float16 autocast loses the gradient of hidden tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import reduce, select
from ..ops.reduce import Tokens
from ..ops.schedule import Layers, Schedule
from ..plan import Plan
from ..recipe import Recipe, Weight
from ..registry import method


def declared(width: int, count: int) -> dict[str, Weight]:
    half, quarter = width // 2, width // 4
    sizes = {"in_conv.1": (width, width), "out_conv.0": (half, width), "out_conv.2": (quarter, half), "out_conv.4": (2, quarter)}
    found = {"in_conv.0.weight": Weight((width,), 0.0, 1.0), "in_conv.0.bias": Weight((width,), 0.0)}
    for name, shape in sizes.items():
        found |= {f"{name}.weight": Weight(shape), f"{name}.bias": Weight(shape[:1], 0.0)}
    return found


def keep_score(x: Tensor, size: Tensor | None, weights: dict[str, Tensor]) -> Tensor:
    """Log-probability that a token is kept; size [B, N, 1] weighs the mean, in training it is the decisions so far. x [B, N, C] -> [B, N]."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.layer_norm(x.to(weights["in_conv.0.weight"]), x.shape[-1:], weights["in_conv.0.weight"], weights["in_conv.0.bias"])
    own, shared = F.gelu(linear("in_conv.1", x)).tensor_split([x.shape[-1] // 2], dim=-1)
    if size is None:
        mean = shared.mean(dim=1, keepdim=True)
    else:
        mean = (shared * size).sum(dim=1, keepdim=True) / size.sum(dim=1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
    x = F.gelu(linear("out_conv.0", torch.cat([own, mean.expand_as(shared)], dim=-1)))
    logits = linear("out_conv.4", F.gelu(linear("out_conv.2", x)))
    return logits.log_softmax(dim=-1)[..., 0]


def topk_or_all(s: Tensor, count: int, training: bool) -> Plan:
    """Keep the highest scores; keep all tokens in training."""
    return select.everything(s) if training else select.topk(s.detach(), count)


def drop_or_hide(x: Tensor, plan: Plan, size: Tensor | None, s: Tensor, training: bool) -> Tokens:
    """Survivors; in training all tokens, with 1 in size for those that are drawn to stay and 0 for the others, gradient of the soft
    choice included. -> [B, K, C], [B, K, 1]"""
    if not training:
        return reduce.drop(x, plan, size)
    drop = (-torch.expm1(s)).clamp(min=torch.finfo(s.dtype).tiny).log()
    soft = F.gumbel_softmax(torch.stack([s, drop], dim=-1))[..., :1]
    decision = (soft > 0.5).to(soft) + (soft - soft.detach())
    return x, decision if size is None else decision * size


@method
def dynamicvit(keep: float = 0.7, layers: Layers = (3, 6, 9)) -> Recipe:
    plan = Schedule(layers, keep=keep, compound=True)
    return Recipe(keep_score, topk_or_all, drop_or_hide, plan, where="before", hides=True, weights=declared)
