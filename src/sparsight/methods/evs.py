"""EVS: of a video keep what changes from frame to frame, and the first frame whole. NVIDIA, 2025, arXiv:2510.14624.

Reference: vLLM (094f117). A token's change is 1 - its cosine with the token at the same place of the frame before; all frames compete for one
budget, so a still part of a video may vanish. At least the first frame stays, whatever the budget: a picture keeps all its tokens. A frame is
a temporal slice as the language model gets it (two pictures of the video in Qwen). Models trained with it prune 70 %. keep= rounds down.
Deviation: floor(keep * tokens) instead of int(tokens * (1 - q)), which by its rounding may be one less.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..ops import reduce, schedule, select
from ..plan import Plan
from ..recipe import Recipe
from ..registry import method

FIRST = 255.0
"""Change of the first frame's tokens, above all others."""


def by_change(x: Tensor, frames: int, count: int) -> Plan:
    """Keep the tokens of x [B, T * n, C] that differ most from the frame before."""
    batch, total, width = x.shape
    by_frame = x.view(batch, frames, total // frames, width)
    change = 1 - cosine_similarity(by_frame[:, 1:], by_frame[:, :-1], dim=-1, eps=1e-8)
    change = torch.cat([torch.full_like(by_frame[:, :1, :, 0], FIRST), change], dim=1).flatten(1)
    return select.topk(change, max(count, total // frames))


@method
def evs(keep: float = 0.3) -> Recipe:
    return Recipe(None, by_change, reduce.drop, schedule.once(keep=keep, rounding="down"), where="projector")
