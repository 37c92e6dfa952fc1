"""Resize: make the picture smaller before the model sees it, the baseline that pruning has to beat. VTC-Bench, arXiv 2510.07143.

Bicubic with antialiasing, in one step from the picture that the model is given, to whole patches: at most the budget's number, in about the
picture's shape (keep=0.5 of 16 x 16 is 11 x 11). Positions follow as the framework interpolates them. Attention and everything else run on
the smaller picture, so it costs what its tokens cost. A processor that has made the picture smaller already makes it the second resampling.
In a vision-language model with pictures in one piece (LLaVA, Qwen-VL) the vision encoder gets the smaller picture, and the prompt as many
placeholders as that has tokens. A position table that was trained on one size only has not seen another: that is part of what is compared.
"""

from ..ops import reduce, select
from ..ops.schedule import Schedule
from ..recipe import Recipe
from ..registry import method


@method
def resize(keep: float = 0.5) -> Recipe:
    return Recipe(None, select.cells, reduce.merge_sized, Schedule((), keep=keep), where="image")
