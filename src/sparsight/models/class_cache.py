"""A class token of a cache in front of a block's sequence, seen by its attention alone (TCA's class-token cache)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import attention

PAIRS = ("shared_rel_pos_bias", "shared_rel_pos", "attention_mask", "attn_mask")
"""Names under which frameworks hand a bias or mask between all tokens to their blocks."""


def lengthened(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positions for a cached class token in front: its relative bias is the class token's, it is not rotated."""
    longer = dict(kwargs)
    for name in PAIRS:
        pairs = kwargs.get(name)
        if isinstance(pairs, Tensor):
            pairs = torch.cat([pairs[:, :, :1], pairs], dim=2) if pairs.shape[2] > 1 else pairs
            longer[name] = torch.cat([pairs[..., :1], pairs], dim=3)
    rope = kwargs.get("rope")
    if isinstance(rope, Tensor):  # sines, then cosines; one row more moves the patches' rows on by one
        still = torch.arange(rope.shape[-1], device=rope.device).ge(rope.shape[-1] // 2).to(rope.dtype)
        longer["rope"] = torch.cat([still.expand_as(rope[..., :1, :]), rope], dim=-2)
    return longer


def forget(heads: dict[str, Tensor], prefix: int, scale: float) -> dict[str, Tensor]:
    """q, k, v [B, H, 1+P+N, D] without the cached token, and the class token's attention, which is not renormalised for that."""
    rest = {name: value[:, :, 1:] for name, value in heads.items()}
    if "q" in heads and "k" in heads and prefix:
        rest["class_attn"] = attention.class_row(rest["q"], heads["k"], prefix + 1, scale)
    return rest
