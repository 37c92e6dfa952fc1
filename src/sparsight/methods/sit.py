"""SiT: pool all tokens into a few by weights that a small network gives them. Zong et al., Self-slimmed Vision Transformer, ECCV 2022, arXiv:2111.12624.

Reference: the token slimming module of the Token Reduction benchmark (JoakimHaurum/TokenReduction), whose counts are
int(patches * keep^(site + 1)), before the block. LayerNorm, Linear to half the width, GELU, Linear to one logit per slot, times a
learned scale, softmax over the tokens; every slot is the weighted sum of the tokens themselves.
Learned weights per site, by the authors' names: `scale` [1, 1, 1], `weight.0` (LayerNorm), `weight.1`, `weight.3` (Linear).
"""

from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from ..ops import pool, select
from ..ops.schedule import Layers, Schedule
from ..plan import Plan
from ..recipe import Recipe, Weight
from ..registry import method


def declared(width: int, count: int) -> dict[str, Weight]:
    half = width // 2
    return {
        "scale": Weight((1, 1, 1), 0.0, 1.0),
        "weight.0.weight": Weight((width,), 0.0, 1.0),
        "weight.0.bias": Weight((width,), 0.0),
        "weight.1.weight": Weight((half, width)),
        "weight.1.bias": Weight((half,), 0.0),
        "weight.3.weight": Weight((count, half)),
        "weight.3.bias": Weight((count,), 0.0),
    }


def slim(x: Tensor, weights: dict[str, Tensor], count: int) -> Plan:
    """Assign tokens x [B, N, C] to slots by a small network and a softmax over tokens."""
    if count >= x.shape[1]:
        return select.everything(x)
    hidden = layer_norm(x, x.shape[-1:], weights["weight.0.weight"], weights["weight.0.bias"])
    hidden = gelu(linear(hidden, weights["weight.1.weight"], weights["weight.1.bias"]))
    logits = linear(hidden, weights["weight.3.weight"], weights["weight.3.bias"]) * weights["scale"]
    return pool.soft_plan(logits.softmax(dim=1).transpose(1, 2))


@method
def sit(keep: float = 0.7, layers: Layers = (3, 6, 9)) -> Recipe:
    return Recipe(None, slim, pool.pooled, Schedule(layers, keep=keep, compound=True), where="before", weights=declared)
