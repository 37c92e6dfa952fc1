"""EViT: keep the patches that the class token attends to, fuse the rest into one. Liang et al., ICLR 2022, arXiv:2202.07800.

Reference: youweiliang/evit. The fused token is an ordinary token from then on: counted, scored and prunable.
Deviation: kept tokens stay in ascending order instead of descending score.
"""

from ..ops import reduce, schedule, score, select
from ..ops.schedule import Layers
from ..recipe import Recipe
from ..registry import method


@method
def evit(keep: float = 0.7, layers: Layers = (3, 6, 9)) -> Recipe:
    return Recipe(score.class_attention, select.topk_fused, reduce.fuse_rest, schedule.staged(keep, layers))
