"""Scores by attention that several methods can exchange for one another, by name."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..errors import PruneError
from . import attention
from .schedule import check_share
from .score import column_norm, register_score

Importance = Literal["class", "col_ln", "column_mean"]
"""Class token's row; p-norm of the column (Col-Ln); mean of the column, what ports to encoders without class token use."""


@register_score("column_mean")
def column_mean(q: Tensor, k: Tensor, prefix: int, scale: float) -> Tensor:
    """Mean attention that each patch receives from the patches. q, k [B, H, P+N, D] -> [B, N]."""
    return attention.column_mean(q, k, prefix, scale)


def check_rescue(rescue: float, score: str) -> float:
    """Validate the share of the slots that a method gives to Col-Ln beside class attention."""
    if check_share("rescue", rescue) and score != "class":
        raise PruneError(f"rescue={rescue:g} corrects class attention; leave out score={score} or rescue")
    return rescue


def joined(x: Tensor) -> Tensor:
    """Merge all heads into one, undoing the split into heads. x [B, H, L, D] -> [B, 1, L, H*D]."""
    return x.transpose(1, 2).flatten(2).unsqueeze(1)


def single_head(q: Tensor, k: Tensor, prefix: int, kind: Importance, order: float = 2.0) -> Tensor:
    """Compute the named score with all heads merged into one of width C, logits scaled by C^-0.5.
    q, k [B, H, P+N, D] -> [B, N]. PruMerge, arXiv:2403.15388."""
    scale = (q.shape[1] * q.shape[3]) ** -0.5
    if kind == "column_mean":
        return column_mean(joined(q), joined(k), prefix, scale)
    if kind == "col_ln":
        return column_norm(joined(q), joined(k), prefix, scale, order)
    if prefix < 1:
        raise PruneError("score=class needs a class token in front of the patches; try score=column_mean")
    return attention.class_row(joined(q[:, :, :1]), joined(k), prefix, scale)[:, 0]
