"""BAT: keep the patches the class token attends to, merge the others into clusters. Long et al., Beyond Attentive Tokens, CVPR 2023, arXiv:2211.11315.

A reconstruction: the authors published no code and the paper prunes inside a vision encoder. Here, between encoder and language
model, round(ratio * tokens) patches stay as they are and the others form tokens - that many clusters around density peaks of
their features; a cluster is the mean of its patches weighted by class attention and stands at its centre's place. Not stated in
the paper in this form: `ratio` 0.5, density among as many neighbours as there are clusters, the weights; attentive patches are not matched and fused.
`score=column_mean` or `col_ln` is for encoders without class token. keep= rounds up.
"""

import math

from torch import Tensor

from ..ops import hybrid, reduce, schedule
from ..ops.score import Importance
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method


def split(s: Tensor, x: Tensor, count: int, ratio: float) -> Plan:
    """Keep round(ratio * count) tokens by score s [B, N] and cluster the rest of x [B, N, C]."""
    return hybrid.top_and_clusters(s, x, count, math.floor(ratio * count + 0.5))


@method
def bat(tokens: int = 64, ratio: float = 0.5, score: Importance = "class", order: float = 2.0) -> Recipe:
    schedule.check_share("ratio", ratio)
    choose = Step(split, ratio=ratio)
    return Recipe(attention_score(score, order), choose, reduce.mixture, schedule.once(tokens), where="encoder")
