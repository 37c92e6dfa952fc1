"""EViT: keep the patches that the class token attends to, fuse the rest into one. Liang et al., ICLR 2022, arXiv:2202.07800.

Reference: youweiliang/evit. The fused token is an ordinary token from then on: counted, scored and prunable.
Two changes of the Renyi entropy paper ("Rényi Entropy: A New Token Pruning Metric for Vision Transformers"): another `score`
(col_ln, with its `order`), or class attention corrected by Col-Ln for a share `rescue` of the slots (0.8 there; `budget` as in
col_ln_rescue). What weighs the fused token then is not stated: class attention by default, as in EViT; `fuse=score` is the other score.
Deviation: kept tokens stay in ascending order instead of descending score.
"""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from ..ops import hybrid, reduce, schedule, select
from ..ops.schedule import Layers
from ..ops.score import Importance, check_rescue
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method


def rescued(
    s: Tensor, q: Tensor, k: Tensor, prefix: int, scale: float, count: int, rescue: float, budget: hybrid.Budget, order: float
) -> Plan:
    """Select as col_ln_rescue does, with one more slot for the fused rest."""
    plan = hybrid.rescued_by_columns(s, q, k, prefix, scale, count, rescue, budget, order)
    return replace(plan, fused=count < plan.total)


@method
def evit(
    keep: float = 0.7,
    layers: Layers = (3, 6, 9),
    score: Importance = "class",
    rescue: float = 0.0,
    budget: hybrid.Budget = "kept",
    fuse: Literal["class", "score"] = "class",
    order: float = 2.0,
) -> Recipe:
    choose = Step(select.topk_fused)
    if check_rescue(rescue, score):
        choose = Step(rescued, rescue=rescue, budget=budget, order=order)
    own = score == "class" or fuse == "score"
    fused = reduce.fuse_rest if own else reduce.fuse_rest_by_class
    return Recipe(attention_score(score, order), choose, fused, schedule.staged(keep, layers))
