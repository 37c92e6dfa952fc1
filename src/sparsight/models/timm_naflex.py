"""timm's NaFlexVit: images of one size, or patches of images of different sizes with their coordinates, padded to one length.

Read with timm 1.0.31. In a padded batch every image is scored and pruned on its own patches, with its own count, as if it were alone:
attention masks, rotary rows and pooling follow. Padding has to come last, as timm's collator puts it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ._line import Straight
from .positions import with_bias
from .site import Site
from .timm_eva import TimmEva
from .timm_family import full_intermediates

UNKNOWN = 1 << 15
"""Side of the grid before an image has come, where the model names none."""


class TimmNaFlex(TimmEva):
    """NaFlexVit made of timm's `Block` or `EvaBlock`."""

    name = "timm NaFlexVit"
    classes = ("NaFlexVit",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positional = True
        self.coordinates: Tensor | None = None
        self.valid: Tensor | None = None

    @property
    def class_token(self) -> bool:
        return bool(self.model.has_class_token)

    @property
    def grid(self) -> tuple[int, int]:
        embeds: Any = self.model.embeds
        if self.coordinates is not None:
            sizes = {(int(h) + 1, int(w) + 1) for h, w in self.coordinates.amax(dim=1).tolist()}
            if len(sizes) > 1 or self.valid is not None:
                raise PruneError(
                    "the images of this batch have different patch grids; a method or map that needs one takes them one by one"
                )
            return sizes.pop()
        if self.image == (0, 0):
            h, w = embeds.pos_embed_grid_size or (UNKNOWN, UNKNOWN)
        else:
            h, w = embeds.dynamic_feat_size(self.image)
        return int(h), int(w)

    def projection(self) -> nn.Module:
        return self.model.embeds.norm  # type: ignore[return-value]

    def check(self) -> None:
        super(TimmEva, self).check()
        self.check_blocks(
            ("Block", "EvaBlock"), ("Attention", "EvaAttention", "AttentionRope"), "timm's Block and EvaBlock (attention, then MLP)"
        )

    def patch(self) -> None:
        super().patch()
        if self.sites:
            self.hooks.append(self.model.embeds.register_forward_pre_hook(self.see_patches, with_kwargs=True))  # type: ignore[union-attr]
            self.hooks.append(self.model.register_forward_pre_hook(self.see_call, with_kwargs=True))

    def tap(self, module: nn.Module) -> None:
        """The embedding adds positions to the projected patches in place, so a copy of them is recorded."""
        if module is not self.projection():
            return super().tap(module)
        self.hooks.append(module.register_forward_hook(record_copy))
        self.tapped.append(module)

    def see_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A mask of the user's own is refused; the one that the model makes of `patch_valid` is followed."""
        inside = args[0] if args and isinstance(args[0], dict) else {}
        if kwargs.get("attn_mask") is not None or inside.get("attn_mask") is not None or len(args) > 3:
            super().refuse_mask((True,), {})

    def see_patches(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember what the patches of this call are: an image's size, or coordinates and which are real."""
        self.coordinates, valid = kwargs.get("patch_coord"), kwargs.get("patch_valid")
        self.see_image(_module, args if self.coordinates is None else ())
        self.valid = None if valid is None or bool(valid.all()) else valid.bool()
        if self.valid is not None and bool((self.valid[:, 1:] & ~self.valid[:, :-1]).any()):
            raise PruneError("padding stands between real patches; patch_valid has to end with it, as timm's collator makes it")

    def refuse_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Blocks get the mask that the model made; `see_call` has looked at the user's."""

    def signals(self, site: Site, block: nn.Module, x: Tensor, size: Tensor | None, heads: dict[str, Tensor]) -> dict[str, Any]:
        given = super().signals(site, block, x, size, heads)
        return {**given, "valid": self.valid} if site.previous is None and self.valid is not None else given

    def follow(self, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Behind the first site the bias says which tokens are real, and the model's mask is no longer needed."""
        if self.arriving(index) is None:
            return kwargs
        return {**super().follow(index, kwargs), "attn_mask": None}

    def opens(self, block: nn.Module) -> bool:
        return False  # masks come with the images

    def straight(self, block: nn.Module) -> Straight | None:
        return None

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        bias = with_bias(kwargs.get("attn_mask"), bias)
        if type(block).__name__ == "EvaBlock":
            return super().attend(block, x, bias, kwargs)
        b: Any = block
        branch: Tensor = b.drop_path1(b.ls1(b.attn(b.norm1(x), attn_mask=bias)))
        return x + branch

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        if type(block).__name__ == "EvaBlock":
            return super().feed(block, x)
        b: Any = block
        branch: Tensor = b.drop_path2(b.ls2(b.mlp(b.norm2(x))))
        return x + branch

    def weigh_pooling(self) -> None:
        model: Any = self.model
        model.forward_intermediates = partial(full_intermediates, model)
        model._pool = partial(sized_pool, model)

    def unpatch(self) -> None:
        super().unpatch()
        self.model.__dict__.pop("_pool", None)
        self.coordinates = self.valid = None


def record_copy(module: nn.Module, _args: Any, output: Tensor) -> None:
    """Forward hook: keep a copy of the output on the module until the site has read it."""
    module._sparsight_out = output.clone()


def sized_pool(self: Any, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
    """timm's `_pool` for the tokens that are left: averages weighted by size, padding left out; x [B, P+K, C] -> [B, C]."""
    family, kind = self._sparsight, self.global_pool if pool_type is None else pool_type
    weight = family.last_size()
    if self.attn_pool is not None or kind not in ("avg", "avgmax") or weight is None:
        pooled: Tensor = type(self)._pool(self, x, pool_type, patch_valid=family.sites[-1].valid)
        return pooled
    first = 0 if self.pool_include_prefix else self.num_prefix_tokens
    weight = nn.functional.pad(weight.to(x.dtype), (0, 0, self.num_prefix_tokens - first, 0), value=1.0)
    mean = (x[:, first:] * weight).sum(dim=1) / weight.sum(dim=1)
    if kind == "avg":
        return mean
    return 0.5 * (x[:, first:].masked_fill(weight == 0, torch.finfo(x.dtype).min).amax(dim=1) + mean)
