"""open_clip's own VisionTransformer: the image tower of its CLIP, CustomTextCLIP and CoCa models, or by itself.

Read with open_clip 3.3.0. Its torch.nn.MultiheadAttention takes no bias per image without a matrix per head and keeps q, k and v to
itself, so it is made again from its own weights. Image towers from timm are pruned as what they are; the text tower is left alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import PruneError
from .engine import Engine
from .heads import join_heads, split_heads
from .pooling import last_size
from .remade import Openly, Remade
from .select_first import Heads, Opened, unheard
from .site import Site
from .state import ForwardState
from .timm_family import full_intermediates


class OpenCLIP(Opened, Remade):
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

    def grid_of(self, state: ForwardState | None) -> tuple[int, int]:
        model: Any = self.model
        h, w = model.image_size if state is None or state.image == (0, 0) else state.image
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

    def parts(self, block: nn.Module, x: Tensor) -> Heads:
        a: Any = block.attn
        q, k, v = (
            split_heads(part, a.num_heads) for part in nn.functional.linear(x, a.in_proj_weight, a.in_proj_bias).chunk(3, dim=-1)
        )
        return (a.ln_q(q), a.ln_k(k), v) if hasattr(a, "ln_q") else (q, k, v)

    def project(self, block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Heads:
        b: Any = block
        return self.parts(block, b.ln_1(x))

    def opens(self, block: nn.Module) -> bool:
        return isinstance(block.attn, nn.MultiheadAttention) and unheard(block.attn)

    def close(self, block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
        b: Any = block
        return self.residual(block, x, b.attn.out_proj(mixed))

    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        """The residual of the attention."""
        b: Any = block
        branch = b.ls_1(branch)
        return x + branch

    def dropout(self, block: nn.Module) -> float:
        a: Any = block.attn
        return float(a.dropout) if a.training else 0.0

    def attend_openly(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Openly:
        b: Any = block
        a = b.attn
        if isinstance(a, nn.MultiheadAttention):
            mixed, heads = self.mixed(block, b.ln_1(x), bias, a.dropout)
            return self.close(block, x, join_heads(mixed)), heads
        mixed, heads = self.mixed(block, b.ln_1(x), bias, a.attn_drop.p)
        mixed = mixed if a.head_scale is None else mixed * a.head_scale
        return self.residual(block, x, b.ln_attn(a.out_drop(a.out_proj(a.ln_inner(join_heads(mixed)))))), heads

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        b: Any = block
        branch: Tensor = b.ls_2(b.mlp(b.ln_2(x)))
        return x + branch

    def check_sites(self, sites: list[Site]) -> None:
        if getattr(self.model, "attn_pool", None) is not None and any(site.adaptive for site in sites):
            raise PruneError("open_clip's attention pooling takes no mask, which images with different numbers of tokens need")

    def install(self, engine: Engine) -> None:
        model: Any = self.model
        engine.replace(model, "forward_intermediates", partial(full_intermediates, model))
        if model.attn_pool is None and model.pool_type == "avg":
            engine.replace(model, "_global_pool", partial(sized_pool, model))


def sized_pool(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """open_clip's `_global_pool` with the mean weighted by token size; x [B, 1+N, C] -> [B, C], [B, N, C]."""
    size, tokens = last_size(self), x[:, 1:]
    if size is None:
        return tokens.mean(dim=1), tokens
    return ((tokens * size).sum(dim=1) / size.sum(dim=1)).to(x.dtype), tokens
