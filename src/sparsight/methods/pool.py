"""Pool: average neighbouring patches on a coarser grid, a baseline without any score. VTC-Bench, arXiv 2510.07143.

At most the budget's number of cells, in about the grid's shape (keep=0.5 of 16 x 16 is 11 x 11), behind block `layer`; in a vision-language
model behind its projector. Every patch counts in one cell only, where adaptive average pooling lets cells overlap.
"""

from ..ops import reduce, schedule, select
from ..recipe import Recipe
from ..registry import method


@method
def pool(keep: float = 0.5, layer: int = 3) -> Recipe:
    return Recipe(None, select.cells, reduce.merge_sized, schedule.staged(keep, (layer,)), where="block")
