"""timm's VisionTransformer: ViT, DeiT, DeiT-III, DINOv2 (with registers), CLIP and SigLIP image towers, FlexiViT, AIMv2.

Read with timm 1.0.31. Blocks whose attention and MLP run in parallel, post-norm blocks and windowed attention have no place between
attention and MLP where tokens could leave, and are refused.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ._family import Family


class TimmViT(Family):
    """VisionTransformer and VisionTransformerDistilled made of `Block` with `Attention`."""

    name = "timm VisionTransformer"
    classes = ("VisionTransformer", "VisionTransformerDistilled")

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)  # type: ignore[arg-type]

    @property
    def prefix(self) -> int:
        return int(self.model.num_prefix_tokens)  # type: ignore[arg-type]

    @property
    def class_token(self) -> bool:
        return bool(self.model.has_class_token)

    @property
    def grid(self) -> tuple[int, int]:
        embed: Any = self.model.patch_embed
        if self.image == (0, 0):
            return (int(embed.grid_size[0]), int(embed.grid_size[1]))
        h, w = embed.dynamic_feat_size(self.image)
        return (int(h), int(w))

    def projection(self) -> nn.Module:
        return self.model.patch_embed  # type: ignore[return-value]

    def features(self, projected: Tensor) -> Tensor:
        return projected.flatten(1, 2) if projected.dim() == 4 else projected

    def check(self) -> None:
        super().check()
        for index, block in enumerate(self.blocks):
            kind, attention = type(block).__name__, type(getattr(block, "attn", None)).__name__
            if kind != "Block" or attention != "Attention":
                raise PruneError(
                    f"block {index} of {type(self.model).__name__} is a {kind} with {attention}, which has no place between attention "
                    "and MLP where tokens could leave; supported: timm's Block with Attention (pre-norm, attention then MLP)"
                )
        drop = getattr(self.model, "patch_drop", None)
        if getattr(drop, "prob", 0) > 0:
            raise PruneError(f"the model drops patches itself (patch_drop_rate={drop.prob}); set it to 0 before pruning")  # type: ignore[union-attr]

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        b: Any = block
        branch: Tensor = b.drop_path1(b.ls1(b.attn(b.norm1(x), attn_mask=bias)))
        return x + branch

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

    def scale(self, block: nn.Module) -> float:
        a: Any = block.attn
        return float(a.scale)

    def weigh_pooling(self) -> None:
        model: Any = self.model
        model.forward_intermediates = types.MethodType(flat_intermediates, model)
        if model.attn_pool is None and model.global_pool in ("avg", "avgmax"):
            model.pool = types.MethodType(sized_pool, model)

    def unpatch(self) -> None:
        super().unpatch()
        self.model.__dict__.pop("pool", None)
        self.model.__dict__.pop("forward_intermediates", None)


def sized_pool(self: Any, x: Tensor, pool_type: str | None = None) -> Tensor:
    """timm's `pool` with averages weighted by token size; x [B, P+N, C] -> [B, C]."""
    kind = self.global_pool if pool_type is None else pool_type
    size = self._sparsight.last_size()
    if kind not in ("avg", "avgmax") or size is None:
        pooled: Tensor = type(self).pool(self, x, pool_type)
        return pooled
    first = 0 if self.pool_include_prefix else self.num_prefix_tokens
    weight = torch.nn.functional.pad(size.to(x.dtype), (0, 0, self.num_prefix_tokens - first, 0), value=1.0)
    mean = (x[:, first:] * weight).sum(dim=1) / weight.sum(dim=1)
    return mean if kind == "avg" else 0.5 * (x[:, first:].amax(dim=1) + mean)


def flat_intermediates(self: Any, *args: Any, **kwargs: Any) -> Any:
    """timm's `forward_intermediates` for token lists only: it would fold a pruned list into a grid without complaint."""
    original = type(self).forward_intermediates
    bound = inspect.signature(original).bind(self, *args, **kwargs)
    bound.apply_defaults()
    if bound.arguments["output_fmt"] != "NLC":
        raise PruneError(
            f"{type(self).__name__} is pruned: its tokens fill no grid; ask for output_fmt='NLC', or remove the handle"
        )
    return original(self, *args, **kwargs)
