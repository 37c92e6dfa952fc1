"""timm's VisionTransformer: ViT, DeiT, DeiT-III, DINOv2 (with registers), CLIP and SigLIP image towers, FlexiViT, AIMv2.

Read with timm 1.0.31. Blocks whose attention and MLP run in parallel, post-norm blocks and windowed attention have no place between
attention and MLP where tokens could leave, and are refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .heads import split_heads
from .select_first import Heads
from .timm_family import OpenedTimm


class TimmViT(OpenedTimm):
    """VisionTransformer and VisionTransformerDistilled made of `Block` with `Attention`."""

    name = "timm VisionTransformer"
    classes = ("VisionTransformer", "VisionTransformerDistilled")

    @property
    def class_token(self) -> bool:
        return bool(self.model.has_class_token)

    def check(self) -> None:
        super().check()
        self.check_blocks(("Block",), ("Attention",), "timm's Block with Attention (pre-norm, attention then MLP)")

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        b: Any = block
        return self.residual(block, x, b.attn(b.norm1(x), attn_mask=bias))

    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        b: Any = block
        branch = b.drop_path1(b.ls1(branch))
        return x + branch

    def fused(self, block: nn.Module) -> bool:
        a: Any = block.attn
        return bool(a.fused_attn) and a.gate is None

    def project(self, block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Heads:
        b: Any = block
        q, k, v = (split_heads(part, b.attn.num_heads) for part in b.attn.qkv(b.norm1(x)).chunk(3, dim=-1))
        return b.attn.q_norm(q), b.attn.k_norm(k), v

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.drop_path2(b.ls2(b.mlp(b.norm2(x))))
        return x + branch

    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        a: Any = block.attn
        return {"q": a.q_norm, "k": a.k_norm, "v": a.qkv}

    def heads(self, block: nn.Module, tapped: Tensor) -> Tensor:
        if tapped.dim() == 4:
            return tapped
        a: Any = block.attn
        v: Tensor = tapped[..., 2 * a.attn_dim :]
        return v.view(*v.shape[:2], a.num_heads, a.head_dim).transpose(1, 2)
