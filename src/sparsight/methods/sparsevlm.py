"""SparseVLM: text raters score the image tokens, a part of the dropped ones is recycled in clusters. Zhang et al., ICML 2025, arXiv:2410.04417.

Reference: Gumpest/SparseVLMs. count=table is version 1.5: for 576 image tokens, `tokens` (192, 128, 96 or 64) names its row of counts
kept after the three layers; other numbers interpolate between the rows, with (0, 0, 0) and (576, 576, 576) as the ends; `keep` is the
row of keep * 576, scaled to the tokens there are. count=rank is version 1.0: int(rank * scale + bias) of the raters' attention, with
the authors' 13.5 and 0 for 192 tokens, 9 and 6 for 128, 0.8 and 0 for 64. At least one token leaves at each site, except with keep=1.
Text means the tokens after the last image token (all text where there is none). Deviations: if no text token stands out as rater, all
of them rate (the authors' code gives NaN); ties in clustering go to the lower index instead of noise; any batch size.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import PruneError
from ..ops import cluster, reduce, select, text
from ..ops.schedule import Layers, as_tuple, show
from ..ops.text import DecoderSchedule, Positions
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Count = Literal["table", "rank"]

TABLE = ((0, (0, 0, 0)), (64, (66, 30, 17)), (96, (238, 48, 26)), (128, (303, 110, 36)), (192, (300, 200, 110)), (576, (576,) * 3))
WHOLE = 576


@dataclass(frozen=True)
class Stages(DecoderSchedule):
    """Counts of the three sites by the authors' table; ranked: by the rank of the raters' attention, whatever `tokens` says."""

    ranked: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remove is not None or len(as_tuple(getattr(self, self.word))) != 1:
            raise PruneError(
                "sparsevlm: the counts of all sites follow from one tokens= or keep=; give a single number of one of them"
            )

    def check(self, entered: int, images: int = 1) -> None:
        if not self.ranked:
            super().check(entered, images)

    def stay(self, original: int, present: int, site: int, sites: int, images: int = 1) -> int:
        amount = as_tuple(self.keep)[0] * WHOLE if self.keep is not None else as_tuple(self.tokens)[0]
        if amount >= WHOLE:
            return present
        count = row(amount)[site] * (original / WHOLE if self.keep is not None else images)
        return max(1, min(int(count + 0.5), present - 1))


def row(tokens: float) -> list[float]:
    """Counts of the three sites for a number of tokens below 576, linear between the rows of the table."""
    high = next(i for i, (number, _) in enumerate(TABLE) if tokens <= number)
    (low_number, low), (number, counts) = TABLE[max(0, high - 1)], TABLE[high]
    share = (tokens - low_number) / (number - low_number)
    return [a + share * (b - a) for a, b in zip(low, counts, strict=True)]


def choose(s: Tensor, x: Tensor, text_attn: Tensor, noise: Tensor, count: int, recycle: bool, rank: tuple[float, ...]) -> Plan:
    """Keep by score, as many as the schedule or the rank says; cluster the best of the rest."""
    if rank:
        plans = [text.rank_count(rows, *rank) for rows in text_attn.unsqueeze(1)]
        if len(set(plans)) > 1:
            raise PruneError(f"count=rank gives different counts ({show(tuple(plans))}) in this batch; reduce one image at a time")
        count = plans[0]
    return cluster.keep_and_recycle(s, x, count, noise) if recycle else select.topk(s, count)


@method
def sparsevlm(
    tokens: int = 192,
    layers: Layers = (2, 6, 15),
    count: Count = "table",
    scale: float = 13.5,
    bias: float = 0.0,
    recycle: bool = True,
    positions: Positions = "renumbered",
) -> Recipe:
    if count == "table" and len(layers) != 3:
        raise PruneError(
            f"sparsevlm: the table has counts for three layers, layers={show(layers)} names {len(layers)}; try count=rank"
        )
    if not (math.isfinite(scale) and math.isfinite(bias)):
        raise PruneError(f"sparsevlm: scale={scale:g}, bias={bias:g}: both must be finite")
    pick = Step(choose, recycle=recycle, rank=(scale, bias) if count == "rank" else ())
    stages = Stages(layers, tokens=tokens, after=True, rows="raters", positions=positions, ranked=count == "rank")
    return Recipe(text.mean_row, pick, reduce.merge_sized if recycle else reduce.drop, stages, where="decoder")
