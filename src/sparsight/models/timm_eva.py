"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotary positions (axial, mixed, M-RoPE).

Read with timm 1.0.31. The model makes one rotary table for all blocks, or one per block, and hands it to each: the rows of the tokens
that are left are taken from it, image by image. A token fused of many has no place and is not rotated, as prefix tokens are not.
Scores see q and k after rotation; keys and values that several heads share are given to each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._positions import Once, take_rows
from ._timm import TimmFamily

POST = "EvaBlockPostNorm"


class TimmEva(TimmFamily):
    """Eva made of `EvaBlock` or `EvaBlockPostNorm`, with `EvaAttention` or `AttentionRope`."""

    name = "timm Eva"
    classes = ("Eva",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positional = getattr(model, "rope", None) is not None
        self.once = Once()

    def check(self) -> None:
        super().check()
        self.check_blocks(("EvaBlock", POST), ("EvaAttention", "AttentionRope"), "timm's EvaBlock and EvaBlockPostNorm")

    def follow(self, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        rope, place = kwargs.get("rope"), self.arriving(index)
        if rope is None or place is None:
            return kwargs

        def rows() -> Tensor:
            blank = torch.arange(rope.shape[-1], device=rope.device).ge(rope.shape[-1] // 2).to(rope.dtype)  # sine 0, cosine 1
            return take_rows(rope, place, blank)

        return {**kwargs, "rope": self.once.made((rope, place), rows)}

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        b: Any = block
        rope, post = kwargs.get("rope"), type(block).__name__ == POST
        branch: Tensor = b.attn(x if post else b.norm1(x), rope=rope, attn_mask=bias)
        branch = b.drop_path1(b.norm1(branch) if post else branch if b.gamma_1 is None else b.gamma_1 * branch)
        return x + branch

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        post = type(block).__name__ == POST
        branch: Tensor = b.mlp(x if post else b.norm2(x))
        branch = b.drop_path2(b.norm2(branch) if post else branch if b.gamma_2 is None else b.gamma_2 * branch)
        return x + branch

    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        b: Any = block
        return {
            "q": b.attn.q_norm,
            "k": b.attn.k_norm,
            "v": b.attn if packed(block) else getattr(b.attn, "v_proj", None) or b.attn.qkv,
        }

    def tap(self, module: nn.Module) -> None:
        """Of an attention with a packed weight, the input is recorded, from which its values can be made again."""
        if type(module).__name__ != "EvaAttention":
            return super().tap(module)
        self.hooks.append(module.register_forward_pre_hook(record_input))
        self.tapped.append(module)

    def heads(self, block: nn.Module, tapped: Tensor) -> Tensor:
        if tapped.dim() == 4:
            return tapped
        a: Any = block.attn
        if packed(block):  # what came is the attention's input
            first = 2 * a.num_heads * a.head_dim
            tapped = nn.functional.linear(tapped, a.qkv.weight[first:], a.v_bias)
        elif getattr(a, "v_proj", None) is None:
            tapped = tapped[..., 2 * a.num_heads * a.head_dim :]
        return tapped.view(*tapped.shape[:2], -1, a.head_dim).transpose(1, 2)

    def captured(self, block: nn.Module, names: list[str], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        a: Any = block.attn
        found = super().captured(block, names, kwargs)
        rope = kwargs.get("rope")
        for name in names:
            if rope is not None and name != "v":
                found[name] = rotated(found[name], rope, a.num_prefix_tokens, getattr(a, "rotate_half", False))
            found[name] = found[name].repeat_interleave(a.num_heads // found[name].shape[1], dim=1)
        return found


def record_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook: keep the input on the module until the site has read it."""
    module._sparsight_out = args[0]


def packed(block: nn.Module) -> bool:
    """Whether q, k and v come from one weight that is used without calling its module."""
    a: Any = block.attn
    return type(a).__name__ == "EvaAttention" and a.qkv is not None and a.q_bias is not None and not a.qkv_bias_separate


def rotated(x: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """x [B, H, P+N, D] as timm's attention rotates it: patches only."""
    from timm.layers import apply_rot_embed_cat

    turned: Tensor = apply_rot_embed_cat(x[:, :, prefix:], rope, **({"half": True} if half else {}))
    return torch.cat([x[:, :, :prefix], turned], dim=2).type_as(x)
