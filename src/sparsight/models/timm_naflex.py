"""timm's NaFlexVit: images of one size, or patches of images of different sizes with their coordinates, padded to one length.

Read with timm 1.0.31. In a padded batch every image is scored and pruned on its own patches, with its own count, as if it were alone:
attention masks, rotary rows and pooling follow. Padding has to come last, as timm's collator puts it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from .engine import Engine
from .positions import with_bias
from .site import Site
from .state import ForwardState
from .timm_eva import TimmEva
from .timm_family import full_intermediates

COORDINATES, VALID = "coordinates", "valid"
"""What a forward remembers of its patches: [B, N, 2], and [B, N] where some are padding."""

UNKNOWN = 1 << 15
"""Side of the grid before an image has come, where the model names none."""


class TimmNaFlex(TimmEva):
    """NaFlexVit made of timm's `Block` or `EvaBlock`."""

    name = "timm NaFlexVit"
    classes = ("NaFlexVit",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positional = True

    @property
    def class_token(self) -> bool:
        return bool(self.model.has_class_token)

    def grid_of(self, state: ForwardState | None) -> tuple[int, int]:
        embeds: Any = self.model.embeds
        coordinates = None if state is None else state.extra.get(COORDINATES)
        if coordinates is not None:
            sizes = {(int(h) + 1, int(w) + 1) for h, w in coordinates.amax(dim=1).tolist()}
            if len(sizes) > 1 or VALID in state.extra:  # type: ignore[union-attr]
                raise PruneError(
                    "the images of this batch have different patch grids; a method or map that needs one takes them one by one"
                )
            return sizes.pop()
        if state is None or state.image == (0, 0):
            h, w = embeds.pos_embed_grid_size or (UNKNOWN, UNKNOWN)
        else:
            h, w = embeds.dynamic_feat_size(state.image)
        return int(h), int(w)

    def projection(self) -> nn.Module:
        return self.model.embeds.norm  # type: ignore[return-value]

    def check(self) -> None:
        super(TimmEva, self).check()
        self.check_blocks(
            ("Block", "EvaBlock"), ("Attention", "EvaAttention", "AttentionRope"), "timm's Block and EvaBlock (attention, then MLP)"
        )

    def install(self, engine: Engine) -> None:
        model: Any = self.model
        engine.hook(model.register_forward_pre_hook(self.see_call, with_kwargs=True))
        engine.replace(model, "forward_intermediates", partial(full_intermediates, model))
        engine.replace(model, "_pool", partial(sized_pool, model))

    def tap(self, module: nn.Module, record: Callable[[nn.Module, Any, Tensor], None]) -> Any:
        """The embedding adds positions to the projected patches in place, so a copy of them is recorded."""
        return super().tap(module, partial(record_copy, record) if module is self.projection() else record)

    def see_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A mask of the user's own is refused; the one that the model makes of `patch_valid` is followed."""
        inside = args[0] if args and isinstance(args[0], dict) else {}
        if kwargs.get("attn_mask") is not None or inside.get("attn_mask") is not None or len(args) > 3:
            super().refuse_mask((True,), {})

    def embedding(self) -> nn.Module:
        return self.model.embeds  # type: ignore[return-value]

    def see_images(self, state: ForwardState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An image's size, or the patches' coordinates and which of them are real."""
        coordinates, valid = kwargs.get("patch_coord"), kwargs.get("patch_valid")
        super().see_images(state, args if coordinates is None else (), kwargs)
        if coordinates is not None:
            state.extra[COORDINATES] = coordinates
        if valid is None or bool(valid.all()):
            return
        state.extra[VALID] = valid = valid.bool()
        if bool((valid[:, 1:] & ~valid[:, :-1]).any()):
            raise PruneError("padding stands between real patches; patch_valid has to end with it, as timm's collator makes it")

    def refuse_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Blocks get the mask that the model made; `see_call` has looked at the user's."""

    def signals(self, state: ForwardState, site: Site) -> dict[str, Any]:
        first = state.before(site.layer) is None
        return {"valid": state.extra[VALID]} if first and VALID in state.extra else {}

    def follow(self, index: int, kwargs: dict[str, Any], place: Tensor | None, state: ForwardState) -> dict[str, Any]:
        """Behind the first site the bias says which tokens are real, and the model's mask is no longer needed."""
        if place is None:
            return kwargs
        return {**super().follow(index, kwargs, place, state), "attn_mask": None}

    def opens(self, block: nn.Module) -> bool:
        return False  # masks come with the images

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


def record_copy(record: Callable[[nn.Module, Any, Tensor], None], module: nn.Module, args: Any, output: Tensor) -> None:
    """Forward hook: record a copy of the output."""
    record(module, args, output.clone())


def sized_pool(self: Any, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
    """timm's `_pool` for the tokens that are left: averages weighted by size, padding left out; x [B, P+K, C] -> [B, C]."""
    state, kind = self._sparsight.states.current(), self.global_pool if pool_type is None else pool_type
    weight = None if state is None else state.size
    last = None if state is None else state.last
    if self.attn_pool is not None or kind not in ("avg", "avgmax") or weight is None:
        pooled: Tensor = type(self)._pool(self, x, pool_type, patch_valid=patch_valid if last is None else last.valid)
        return pooled
    first = 0 if self.pool_include_prefix else self.num_prefix_tokens
    weight = nn.functional.pad(weight.to(x.dtype), (0, 0, self.num_prefix_tokens - first, 0), value=1.0)
    mean = (x[:, first:] * weight).sum(dim=1) / weight.sum(dim=1)
    if kind == "avg":
        return mean
    return 0.5 * (x[:, first:].masked_fill(weight == 0, torch.finfo(x.dtype).min).amax(dim=1) + mean)
