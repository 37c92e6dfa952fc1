"""FastV: drop the image tokens that the prompt's last token ignores, before one layer of the language model. Chen et al., ECCV 2024, arXiv:2403.06764.

Reference: pkunlp-icler/FastV (the KV-cache variant). Attention is that of the layer before; survivors keep their position ids.
Deviations: image tokens are located, never assumed at 35..610; the last row is the last real token; no layer runs twice.
"""

from ..ops import reduce, select, text
from ..ops.text import DecoderSchedule, Positions
from ..recipe import Recipe
from ..registry import method


@method
def fastv(keep: float = 0.5, layer: int = 3, positions: Positions = "original") -> Recipe:
    where = DecoderSchedule((layer,), keep=keep, rounding="down", positions=positions)
    return Recipe(text.mean_row, select.topk, reduce.drop, where, where="decoder")
