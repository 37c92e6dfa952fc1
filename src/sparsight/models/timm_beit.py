"""timm's Beit: BEiT and BEiT v2, with a relative position bias per block or one for all.

Read with timm 1.0.31. The bias belongs to pairs of patches: its rows and columns are taken for the tokens that are left, image by
image, and scores see it in the attention. A token fused of many has the bias of the class token, which has no place either. The
attention is made again from its own weights, since timm's knows only the bias of the full grid.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .heads import join_heads, split_heads
from .positions import look_up_pairs, take_pairs, with_bias, with_columns
from .remade import Openly, Remade
from .state import ForwardState
from .timm_family import TimmFamily, in_three_parts

SHARED = "shared_rel_pos_bias"


class TimmBeit(Remade, TimmFamily):
    """Beit made of its own `Block` with `Attention`."""

    name = "timm Beit"
    classes = ("Beit",)
    positional = True
    key = SHARED

    def check(self) -> None:
        super().check()
        self.check_blocks(("Block",), ("Attention",), "timm's Block and Attention of BEiT")

    def own_bias(self, block: nn.Module) -> Tensor | None:
        """The block's own bias of the full grid: [1, H, P+N, P+N]."""
        a: Any = block.attn
        bias: Tensor | None = None if a.relative_position_bias_table is None else a._get_rel_pos_bias()
        return bias

    def follow(self, index: int, kwargs: dict[str, Any], place: Tensor | None, state: ForwardState) -> dict[str, Any]:
        """The bias of the tokens that are there, the block's own and the shared one added up, in place of the shared one."""
        block, shared = self.blocks[index], kwargs.get(self.key)
        shared = shared if shared is None or shared.dim() == 4 else shared.unsqueeze(0)
        if place is None:
            return {**kwargs, self.key: with_bias(shared, self.own_bias(block))}
        shared = None if shared is None else take_pairs(shared, place, self.prefix)
        return {**kwargs, self.key: with_bias(shared, self.own_pairs(block, place))}

    def own_pairs(self, block: nn.Module, place: Tensor) -> Tensor | None:
        """The block's own bias of the tokens that are left: [B, H, P+K, P+K]."""
        a: Any = block.attn
        table: Tensor | None = a.relative_position_bias_table
        return None if table is None else look_up_pairs(table, a.relative_position_index, place, self.prefix)

    def parts(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a: Any = block.attn
        q, k, v = in_three_parts(a, x).chunk(3, dim=-1)
        return split_heads(q, a.num_heads), split_heads(k, a.num_heads), split_heads(v, a.num_heads)

    def attention(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Openly:
        """Output of the block's attention for its input, and its q, k and v."""
        a: Any = block.attn
        relative = kwargs.get(self.key)
        mixed, heads = self.mixed(block, x, with_bias(relative, bias), a.attn_drop.p)
        return a.proj_drop(a.proj(join_heads(mixed))), with_columns(heads, relative, self.scale(block))

    def attend_openly(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Openly:
        b: Any = block
        branch, heads = self.attention(block, b.norm1(x), bias, kwargs)
        branch = b.drop_path1(branch if b.gamma_1 is None else b.gamma_1 * branch)
        return x + branch, heads

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.mlp(b.norm2(x))
        branch = b.drop_path2(branch if b.gamma_2 is None else b.gamma_2 * branch)
        return x + branch
