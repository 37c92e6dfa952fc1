"""timm's VisionTransformerRelPos: a relative position bias per block or shared, from a table or a small network.

Read with timm 1.0.31. The bias follows the tokens as in BEiT; without a class token, a token fused of many has the mean bias.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .heads import split_heads
from .positions import take_pairs
from .remade import Openly
from .timm_beit import TimmBeit


class TimmRelPos(TimmBeit):
    """VisionTransformerRelPos made of `RelPosBlock` or `ResPostRelPosBlock`."""

    name = "timm VisionTransformerRelPos"
    classes = ("VisionTransformerRelPos",)
    key = "shared_rel_pos"

    def check(self) -> None:
        super(TimmBeit, self).check()
        self.check_blocks(("RelPosBlock", "ResPostRelPosBlock"), ("RelPosAttention",), "timm's RelPosBlock and ResPostRelPosBlock")

    def own_bias(self, block: nn.Module) -> Tensor | None:
        a: Any = block.attn
        bias: Tensor | None = None if a.rel_pos is None else a.rel_pos.get_bias()
        return bias

    def own_pairs(self, block: nn.Module, place: Tensor) -> Tensor | None:
        own = self.own_bias(block)
        return None if own is None else take_pairs(own if own.dim() == 4 else own.unsqueeze(0), place, self.prefix)

    def parts(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a: Any = block.attn
        q, k, v = (split_heads(part, a.num_heads) for part in a.qkv(x).chunk(3, dim=-1))
        return a.q_norm(q), a.k_norm(k), v

    def attend_openly(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Openly:
        b: Any = block
        if type(block).__name__ == "RelPosBlock":
            branch, heads = self.attention(block, b.norm1(x), bias, kwargs)
            return x + b.drop_path1(b.ls1(branch)), heads
        branch, heads = self.attention(block, x, bias, kwargs)
        return x + b.drop_path1(b.norm1(branch)), heads

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.drop_path2(b.ls2(b.mlp(b.norm2(x))) if type(block).__name__ == "RelPosBlock" else b.norm2(b.mlp(x)))
        return x + branch
