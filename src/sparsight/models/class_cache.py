"""A remembered class token in front of a block's sequence, seen by its attention alone (TCA's class-token cache)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..ops import attention

PAIRS = ("shared_rel_pos_bias", "shared_rel_pos", "attention_mask", "attn_mask")
"""Names under which frameworks hand a bias or mask between all tokens to their blocks."""


class Attends(Protocol):
    """What a family does with a block."""

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor: ...

    def bias(self, index: int, x: Tensor) -> Tensor | None: ...


def remember(
    family: Attends, block: nn.Module, index: int, kwargs: dict[str, Any], x: Tensor, memory: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """x [B, P+N, C] plus the attention branch, whose keys and values include memory [B, 1, C], which is left out again itself; and what
    the attention got besides."""
    bias = family.bias(index, x)
    longer, kwargs = torch.cat([memory.to(x.dtype), x], dim=1), lengthened(kwargs)
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (1, 0, int(bias.shape[2] > 1), 0))
    return family.attend(block, longer, bias, kwargs)[:, 1:], kwargs


def lengthened(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positions for a remembered class token in front: its relative bias is the class token's, it is not rotated."""
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
    """q, k, v [B, H, 1+P+N, D] without the remembered token, and the class token's attention, which is not renormalised for that."""
    rest = {name: value[:, :, 1:] for name, value in heads.items()}
    if "q" in heads and "k" in heads and prefix:
        rest["class_attn"] = attention.class_row(rest["q"], heads["k"], prefix + 1, scale)
    return rest
