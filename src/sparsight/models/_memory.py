"""A remembered class token in front of a block's sequence, seen by its attention alone (TCA's class-token cache)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..ops import attention


class Attends(Protocol):
    """What a family does with a block."""

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor: ...

    def bias(self, index: int, x: Tensor) -> Tensor | None: ...


def remember(family: Attends, block: nn.Module, index: int, kwargs: dict[str, Any], x: Tensor, memory: Tensor) -> Tensor:
    """x [B, P+N, C] plus the attention branch, whose keys and values include memory [B, 1, C]; memory itself is left out again."""
    bias = family.bias(index, x)
    longer = torch.cat([memory.to(x.dtype), x], dim=1)
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (1, 0, int(bias.shape[2] > 1), 0))
    return family.attend(block, longer, bias, kwargs)[:, 1:]


def forget(heads: dict[str, Tensor], prefix: int, scale: float) -> dict[str, Tensor]:
    """q, k, v [B, H, 1+P+N, D] without the remembered token, and the class token's attention, which is not renormalised for that."""
    rest = {name: value[:, :, 1:] for name, value in heads.items()}
    if "q" in heads and "k" in heads and prefix:
        rest["class_attn"] = attention.class_row(exact(rest["q"]), exact(heads["k"]), prefix + 1, scale)
    return rest


def exact(x: Tensor) -> Tensor:
    """float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
