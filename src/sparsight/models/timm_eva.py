"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotary positions (axial, mixed, M-RoPE).

Read with timm 1.0.31. The model makes one rotary table for all blocks, or one per block, and hands it to each: the rows of the tokens
that are left are taken from it, image by image. A token fused of many has no place and is not rotated, as prefix tokens are not.
Scores see q and k after rotation; keys and values that several heads share are given to each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .positions import take_rows
from .select_first import Heads
from .state import ForwardState
from .timm_family import OpenedTimm, in_three_parts

POST = "EvaBlockPostNorm"


class TimmEva(OpenedTimm):
    """Eva made of `EvaBlock` or `EvaBlockPostNorm`, with `EvaAttention` or `AttentionRope`."""

    name = "timm Eva"
    classes = ("Eva",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positional = getattr(model, "rope", None) is not None

    def check(self) -> None:
        super().check()
        self.check_blocks(("EvaBlock", POST), ("EvaAttention", "AttentionRope"), "timm's EvaBlock and EvaBlockPostNorm")

    def follow(self, index: int, kwargs: dict[str, Any], place: Tensor | None, state: ForwardState) -> dict[str, Any]:
        rope = kwargs.get("rope")
        if rope is None or place is None:
            return kwargs

        def rows() -> Tensor:
            blank = torch.arange(rope.shape[-1], device=rope.device).ge(rope.shape[-1] // 2).to(rope.dtype)  # sine 0, cosine 1
            return take_rows(rope, place, blank)

        return {**kwargs, "rope": state.once("rope", (rope, place), rows)}

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        b: Any = block
        return self.residual(block, x, b.attn(x if post(block) else b.norm1(x), rope=kwargs.get("rope"), attn_mask=bias))

    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        b: Any = block
        branch = b.drop_path1(b.norm1(branch) if post(block) else branch if b.gamma_1 is None else b.gamma_1 * branch)
        return x + branch

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.mlp(x if post(block) else b.norm2(x))
        branch = b.drop_path2(b.norm2(branch) if post(block) else branch if b.gamma_2 is None else b.gamma_2 * branch)
        return x + branch

    def fused(self, block: nn.Module) -> bool:
        a: Any = block.attn
        return bool(a.fused_attn) and getattr(a, "gate", None) is None and not getattr(a, "qkv_bias_separate", False)

    def project(self, block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Heads:
        b: Any = block
        a, x = b.attn, x if post(block) else b.norm1(x)
        if a.qkv is None:
            parts = [a.q_proj(x), a.k_proj(x), a.v_proj(x)]
        else:
            parts = list((in_three_parts(a, x) if hasattr(a, "q_bias") else a.qkv(x)).chunk(3, dim=-1))
        q, k, v = (part.view(*part.shape[:2], -1, a.head_dim).transpose(1, 2) for part in parts)
        return (
            self.turned(block, a.q_norm(q), "q", kwargs),
            self.turned(block, a.k_norm(k), "k", kwargs),
            self.turned(block, v, "v", kwargs),
        )

    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        b: Any = block
        return {
            "q": b.attn.q_norm,
            "k": b.attn.k_norm,
            "v": b.attn if packed(block) else getattr(b.attn, "v_proj", None) or b.attn.qkv,
        }

    def tap(self, module: nn.Module, record: Callable[[nn.Module, Any, Tensor], None]) -> Any:
        """Of an attention with a packed weight, the input is recorded, from which its values can be made again."""
        if type(module).__name__ != "EvaAttention":
            return super().tap(module, record)
        return module.register_forward_pre_hook(partial(record_input, record))

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

    def heard(self, block: nn.Module, tapped: dict[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        return {name: self.turned(block, part, name, kwargs) for name, part in super().heard(block, tapped, kwargs).items()}

    def turned(self, block: nn.Module, part: Tensor, name: str, kwargs: dict[str, Any]) -> Tensor:
        """q, k or v as the attention uses it: rotated, and for every head."""
        a, rope = cast(Any, block.attn), kwargs.get("rope")
        if rope is not None and name != "v":
            part = rotated(part, rope, a.num_prefix_tokens, getattr(a, "rotate_half", False))
        return part.repeat_interleave(a.num_heads // part.shape[1], dim=1) if part.shape[1] < a.num_heads else part


def record_input(record: Callable[[nn.Module, Any, Tensor], None], module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook: record what a module gets instead of what it makes."""
    record(module, args, args[0])


def post(block: nn.Module) -> bool:
    """Whether a block normalises what its branches give instead of what they get."""
    return type(block).__name__ == POST


def packed(block: nn.Module) -> bool:
    """Whether q, k and v come from one weight that is used without calling its module."""
    a: Any = block.attn
    return type(a).__name__ == "EvaAttention" and a.qkv is not None and a.q_bias is not None and not a.qkv_bias_separate


def rotated(x: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """x [..., P+N, D] as timm's attention rotates it: patches only."""
    from timm.layers import apply_rot_embed_cat

    turned: Tensor = apply_rot_embed_cat(x[..., prefix:, :], rope, **({"half": True} if half else {}))
    return torch.cat([x[..., :prefix, :], turned], dim=-2).type_as(x)
