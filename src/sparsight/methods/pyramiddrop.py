"""PyramidDrop: drop image tokens in stages, by the last prompt token's attention in the layer that follows. Xing et al., CVPR 2025, arXiv:2410.17247.

Reference: Cooperx521/PyramidDrop. `keep` are fractions of the original image tokens, rounded down; position ids are renumbered
after each stage. The score is the attention that the layer at the site would pay to the tokens not yet dropped.
Deviations: grouped-query models, padding, batches and several images work; ties go to the lower index.
"""

from ..ops import reduce, select, text
from ..ops.schedule import Amount, Layers
from ..ops.text import DecoderSchedule, Positions
from ..recipe import Recipe
from ..registry import method


@method
def pyramiddrop(keep: Amount = (0.5, 0.25, 0.125), layers: Layers = (8, 16, 24), positions: Positions = "renumbered") -> Recipe:
    stages = DecoderSchedule(layers, keep=keep, rounding="down", attention="at", positions=positions)
    return Recipe(text.mean_row, select.topk, reduce.drop, stages, where="decoder")
