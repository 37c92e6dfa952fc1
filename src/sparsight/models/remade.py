"""Attention made again from its own weights, where the framework's module tells no one its q, k and v or fixes its own bias."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from .family import Family

Openly = tuple[Tensor, dict[str, Tensor]]
"""x plus the attention branch, and q, k, v [B, H, P+N, D] by name."""


class Remade(Family):
    """A family whose attention is made by `mixed`, so that q, k and v need no hooks."""

    @abstractmethod
    def parts(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, P+N, D] of a normalised input x [B, P+N, C]."""

    @abstractmethod
    def attend_openly(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Openly:
        """As `attend`, and the block's q, k and v."""

    def mixed(self, block: nn.Module, x: Tensor, bias: Tensor | None, dropout: float) -> Openly:
        """Values mixed by attention, before the heads are joined [B, H, P+N, D], for a normalised input x."""
        q, k, v = self.parts(block, x)
        out: Tensor = nn.functional.scaled_dot_product_attention(
            q, k, v,
            attn_mask=None if bias is None else bias.to(q.dtype),
            dropout_p=dropout if block.training else 0.0,
            scale=self.scale(block),
        )  # fmt: skip
        return out, {"q": q, "k": k, "v": v}

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        return self.attend_openly(block, x, bias, kwargs)[0]

    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        return {}

    def heads(self, block: nn.Module, tapped: Tensor) -> Tensor:
        return tapped
