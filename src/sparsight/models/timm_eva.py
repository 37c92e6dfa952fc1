"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotary positions (axial, mixed, M-RoPE).

Read with timm 1.0.31. The model makes one rotary table for all blocks, or one per block, and hands it to each: the rows of the tokens
that are left are taken from it, image by image. A token fused of many has no place and is not rotated, as prefix tokens are not.
Scores see q and k after rotation; keys and values that several heads share are given to each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import _recording as recording
from ._line import Straight
from ._packed import Layer
from .positions import Once, halves, neighbours, take_rows, turn_halves, turn_neighbours
from .select_first import Heads
from .timm_family import OpenedTimm, in_three_parts, straight

COMPLEX = (torch.float32, torch.float64)
"""Types whose pairs torch can see as complex numbers."""

POST = "EvaBlockPostNorm"


class TimmEva(OpenedTimm):
    """Eva made of `EvaBlock` or `EvaBlockPostNorm`, with `EvaAttention` or `AttentionRope`."""

    name = "timm Eva"
    classes = ("Eva",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positional = getattr(model, "rope", None) is not None
        self.once, self.ready = Once(), Once()

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

    def patch(self) -> None:
        super().patch()
        if self.sites and not getattr(self.model, "rope_mixed", False):  # there every block gets a table of its own
            recording.install_in_loop(self, self.model.blocks, self.model)  # type: ignore[arg-type]

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
        parts = [layer.of(x) if isinstance(layer, Layer) else layer(x) for layer in inputs(block)]
        parts = list(parts[0].chunk(3, dim=-1)) if len(parts) == 1 else parts
        q, k, v = (part.view(*part.shape[:2], -1, a.head_dim).transpose(1, 2) for part in parts)
        return (
            self.turned(block, a.q_norm(q), "q", kwargs),
            self.turned(block, a.k_norm(k), "k", kwargs),
            self.turned(block, v, "v", kwargs),
        )

    def straight(self, block: nn.Module) -> Straight | None:
        a: Any = block.attn
        if post(block) or getattr(a, "num_kv_heads", a.num_heads) != a.num_heads:
            return None
        how = {"prefix": a.num_prefix_tokens, "half": getattr(a, "rotate_half", False)}
        rotary = {"positions": "rope", "ready": partial(self.tables, **how), "turn": partial(turn, **how)}
        return straight(block, inputs(block), ("gamma_1", "gamma_2"), **rotary)

    def see_image(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        super().see_image(module, args)
        self.ready.forget()

    def tables(self, rope: Tensor, x: Tensor, prefix: int, half: bool) -> Any:
        """What `turn` takes for tokens like x: made once per site."""
        if not half and (x.dtype not in COMPLEX or not self.paired):
            return rope
        ready: Callable[[Tensor, Tensor, int], Any] = halves if half else neighbours
        sin, cos = rope.chunk(2, dim=-1)
        return self.ready.made((rope,), lambda: ready(cos, sin, prefix))

    @cached_property
    def paired(self) -> bool:
        """Whether rotary tables hold every number twice, side by side."""
        rope: Any = self.model.rope
        with torch.inference_mode(False), torch.no_grad():
            table: Tensor = rope.get_embed(shape=list(self.grid))
        return torch.equal(table[..., ::2], table[..., 1::2])

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
        return {name: self.turned(block, part, name, kwargs) for name, part in super().captured(block, names, kwargs).items()}

    def turned(self, block: nn.Module, part: Tensor, name: str, kwargs: dict[str, Any]) -> Tensor:
        """q, k or v as the attention uses it: rotated, and for every head."""
        a, rope = cast(Any, block.attn), kwargs.get("rope")
        if rope is not None and name != "v":
            part = rotated(part, rope, a.num_prefix_tokens, getattr(a, "rotate_half", False))
        return part.repeat_interleave(a.num_heads // part.shape[1], dim=1) if part.shape[1] < a.num_heads else part


def record_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook: keep the input on the module until the site has read it."""
    module._sparsight_out = args[0]


def post(block: nn.Module) -> bool:
    """Whether a block normalises what its branches give instead of what they get."""
    return type(block).__name__ == POST


def inputs(block: nn.Module) -> tuple[nn.Module | Layer, ...]:
    """What makes q, k and v: one layer for all, whose bias may lie beside it in three parts, or one for each."""
    a: Any = block.attn
    if a.qkv is None:
        return a.q_proj, a.k_proj, a.v_proj
    if getattr(a, "q_bias", None) is None:
        return (a.qkv,)
    return (in_three_parts(a),)


def packed(block: nn.Module) -> bool:
    """Whether q, k and v come from one weight that is used without calling its module."""
    a: Any = block.attn
    return type(a).__name__ == "EvaAttention" and a.qkv is not None and a.q_bias is not None and not a.qkv_bias_separate


def turn(x: Tensor, tables: Any, prefix: int, half: bool) -> Tensor:
    """x [..., P+N, D] rotated as by `rotated`, with tables that are ready."""
    if half:
        return turn_halves(x, tables)
    return turn_neighbours(x, tables) if tables.is_complex() else rotated(x, tables, prefix, half)


def rotated(x: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """x [..., P+N, D] as timm's attention rotates it: patches only."""
    from timm.layers import apply_rot_embed_cat

    turned: Tensor = apply_rot_embed_cat(x[..., prefix:, :], rope, **({"half": True} if half else {}))
    return torch.cat([x[..., :prefix, :], turned], dim=-2).type_as(x)
