"""Col-Ln: keep the patches whose attention columns have the largest p-norm. Rényi Entropy: A New Token Pruning Metric for ViTs, eq. 3.

For order p > 1 the smallest Renyi entropy of a column is its largest p-norm; the columns are not normalised. The paper leaves
open the order, the rule over heads, the class token's row and the diagonal: the defaults are what was measured on a real ViT.
Source: "Rényi Entropy: A New Token Pruning Metric for Vision Transformers"; no public code.
"""

from ..ops import reduce, schedule, score, select
from ..ops.attention import Heads, Rows, check_stride
from ..ops.schedule import Layers
from ..recipe import Recipe, Step
from ..registry import method


@method
def col_ln(
    keep: float = 0.7,
    layers: Layers = (3, 6, 9),
    order: float = 2.0,
    heads: Heads = "mean",
    rows: Rows = "patches",
    diagonal: bool = True,
    stride: int = 1,
) -> Recipe:
    numbers = {"order": score.check_order(order), "stride": check_stride(stride)}
    norm = Step(score.column_norm, heads=heads, rows=rows, diagonal=diagonal, **numbers)
    return Recipe(norm, select.topk, reduce.drop, schedule.staged(keep, layers))
