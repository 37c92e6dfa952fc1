"""FasterVLM: keep the image tokens the class token attends to, after the projector. Zhang et al., 2024, arXiv:2412.01818v1.

Reference: Theia-4869/FasterVLM. Kept tokens stay in spatial order; keep= rounds up, as the repository's README does.
`score=column_mean` or `col_ln` is for vision encoders without class token (the paper has none: the column mean is what the same
authors use in VisPruner). Deviation: scores in float32 and stable, ties to the lower index.
"""

from ..ops import reduce, schedule, select
from ..ops.score import Importance
from ..recipe import Recipe, attention_score
from ..registry import method


@method
def fastervlm(tokens: int = 64, score: Importance = "class", order: float = 2.0) -> Recipe:
    return Recipe(attention_score(score, order), select.topk, reduce.drop, schedule.once(tokens), where="projector")
