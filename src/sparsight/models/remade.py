"""Attention made again from its own weights, where the framework's module tells no one its q, k and v or fixes its own bias."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from .family import Family
from .site import asked


class Remade(Family):
    """A family whose `attend` goes through `remade`; q, k and v wait on the block for the site that reads them."""

    @abstractmethod
    def parts(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, P+N, D] of a normalised input x [B, P+N, C]."""

    def remade(self, block: nn.Module, x: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        """Values mixed by attention, before the heads are joined: [B, H, P+N, D]."""
        q, k, v = self.parts(block, x)
        if asked(self.sites, block.__dict__["_sparsight"][1]):
            block.__dict__["_sparsight_qkv"] = (q, k, v)
        bias = None if bias is None else bias.to(q.dtype)
        out: Tensor = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout if block.training else 0.0, scale=self.scale(block)
        )
        return out

    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        return {}

    def heads(self, block: nn.Module, tapped: Tensor) -> Tensor:
        return tapped

    def captured(self, block: nn.Module, names: list[str], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        found = zip(("q", "k", "v"), block.__dict__.pop("_sparsight_qkv"), strict=True)
        return {name: value for name, value in found if name in names}

    def unpatch(self) -> None:
        for block in self.patched:
            block.__dict__.pop("_sparsight_qkv", None)
        super().unpatch()
