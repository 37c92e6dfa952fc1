"""Class attention: keep the patches that the class token attends to. Liang et al., ICLR 2022, arXiv:2202.07800.

The baseline "[CLS]" of every later paper: EViT's score without its fused token. Reference: youweiliang/evit.
"""

from ..ops import reduce, schedule, score, select
from ..ops.schedule import Layers
from ..recipe import Recipe
from ..registry import method


@method
def class_attention(keep: float = 0.7, layers: Layers = (3, 6, 9)) -> Recipe:
    return Recipe(score.class_attention, select.topk, reduce.drop, schedule.staged(keep, layers))
