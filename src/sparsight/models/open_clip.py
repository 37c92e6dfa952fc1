"""open_clip's own VisionTransformer: the image tower of its CLIP, CustomTextCLIP and CoCa models, or by itself.

Read with open_clip 3.3.0. Its torch.nn.MultiheadAttention takes no bias per image without a matrix per head and keeps q, k and v to
itself, so it is made again from its own weights. Image towers from timm are pruned as what they are; the text tower is left alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import PruneError
from ._heads import join_heads, split_heads
from ._remade import Remade
from ._timm import full_intermediates


class OpenCLIP(Remade):
    """VisionTransformer of open_clip: one class token, blocks with torch's attention or open_clip's own."""

    name = "open_clip VisionTransformer"
    classes = ("VisionTransformer",)

    @classmethod
    def serves(cls, model: nn.Module) -> bool:
        """timm has a class of the same name."""
        return super().serves(model) and any(kind.__module__.startswith("open_clip.") for kind in type(model).__mro__)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.transformer.resblocks)  # type: ignore[union-attr, arg-type]

    @property
    def prefix(self) -> int:
        return 1

    @property
    def grid(self) -> tuple[int, int]:
        model: Any = self.model
        h, w = model.image_size if self.image == (0, 0) else self.image
        return h // model.patch_size[0], w // model.patch_size[1]

    @property
    def width(self) -> int:
        return int(self.model.conv1.out_channels)  # type: ignore[union-attr, arg-type]

    def projection(self) -> nn.Module:
        return self.model.conv1  # type: ignore[return-value]

    def features(self, projected: Tensor) -> Tensor:
        return projected.flatten(2).transpose(1, 2)

    def check(self) -> None:
        super().check()
        model: Any = self.model
        for index, block in enumerate(self.blocks):
            attention: Any = block.attn
            if not getattr(attention, "batch_first", True) or getattr(attention, "logit_scale", None) is not None:
                raise PruneError(
                    f"block {index} of open_clip's VisionTransformer has cosine attention or puts the batch second; supported: "
                    "its usual blocks, made by open_clip.create_model"
                )
        if getattr(model.patch_dropout, "prob", 0) > 0:
            raise PruneError(
                f"the model drops patches itself (patch_dropout={model.patch_dropout.prob}); set it to 0 before pruning"
            )

    def scale(self, block: nn.Module) -> float:
        a: Any = block.attn
        return float(a.head_dim**-0.5)

    def project(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a: Any = block.attn
        packed = nn.functional.linear(x, a.in_proj_weight, a.in_proj_bias)
        q, k, v = (split_heads(part, a.num_heads) for part in packed.chunk(3, dim=-1))
        return (a.ln_q(q), a.ln_k(k), v) if hasattr(a, "ln_q") else (q, k, v)

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        b: Any = block
        a = b.attn
        if isinstance(a, nn.MultiheadAttention):
            branch: Tensor = a.out_proj(join_heads(self.remade(block, b.ln_1(x), bias, a.dropout)))
        else:
            mixed = self.remade(block, b.ln_1(x), bias, a.attn_drop.p)
            mixed = mixed if a.head_scale is None else mixed * a.head_scale
            branch = b.ln_attn(a.out_drop(a.out_proj(a.ln_inner(join_heads(mixed)))))
        branch = b.ls_1(branch)
        return x + branch

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.ls_2(b.mlp(b.ln_2(x)))
        return x + branch

    def weigh_pooling(self) -> None:
        model: Any = self.model
        if model.attn_pool is not None and any(site.adaptive for site in self.sites):
            raise PruneError("open_clip's attention pooling takes no mask, which images with different numbers of tokens need")
        model.forward_intermediates = partial(full_intermediates, model)
        if model.attn_pool is None and model.pool_type == "avg":
            model._global_pool = partial(sized_pool, model)

    def unpatch(self) -> None:
        super().unpatch()
        for name in ("_global_pool", "forward_intermediates"):
            self.model.__dict__.pop(name, None)


def sized_pool(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """open_clip's `_global_pool` with the mean weighted by token size; x [B, 1+N, C] -> [B, C], [B, N, C]."""
    size, tokens = self._sparsight.last_size(), x[:, 1:]
    if size is None:
        return tokens.mean(dim=1), tokens
    return ((tokens * size).sum(dim=1) / size.sum(dim=1)).to(x.dtype), tokens
