"""What timm's Vision Transformers have in common: blocks in a list, prefix tokens in front, pooling at the end, feature maps.

Read with timm 1.0.31.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from .engine import Engine, entered
from .family import Family
from .pooling import last_size, weighed
from .select_first import Opened, unheard
from .site import Site
from .state import ForwardState


class TimmFamily(Family):
    """A model with `blocks`, `num_prefix_tokens` and `patch_embed`."""

    methods = ("forward_features",)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)  # type: ignore[arg-type]

    @property
    def prefix(self) -> int:
        return int(self.model.num_prefix_tokens)  # type: ignore[arg-type]

    @property
    def class_token(self) -> bool:
        return getattr(self.model, "cls_token", None) is not None

    def grid_of(self, state: ForwardState | None) -> tuple[int, int]:
        embed: Any = self.projection()
        if state is None or state.image == (0, 0):
            return (int(embed.grid_size[0]), int(embed.grid_size[1]))
        h, w = embed.dynamic_feat_size(state.image)
        return (int(h), int(w))

    def projection(self) -> nn.Module:
        return self.model.patch_embed  # type: ignore[return-value]

    def features(self, projected: Tensor) -> Tensor:
        return projected.flatten(1, 2) if projected.dim() == 4 else projected

    @property
    def other_sizes(self) -> bool:
        dynamic = getattr(self.model, "dynamic_img_size", None)
        return bool(dynamic) or (dynamic is not None and getattr(self.model, "rope", None) is None)

    def replace_images(self, engine: Engine, smaller: Callable[[Tensor], Tensor]) -> None:
        from timm.layers import Format

        embed = self.projection()
        if not self.model.dynamic_img_size:  # what timm does where a model is built with it
            engine.replace(self.model, "dynamic_img_size", True)
            for name, value in (("strict_img_size", False), ("flatten", False), ("output_fmt", Format.NHWC)):
                engine.replace(embed, name, value)
        engine.hook(embed.register_forward_pre_hook(partial(replace_first, smaller)))

    def check(self) -> None:
        super().check()
        drop: Any = getattr(self.model, "patch_drop", None)
        if getattr(drop, "prob", 0) > 0:
            raise PruneError(f"the model drops patches itself (patch_drop_rate={drop.prob}); set it to 0 before pruning")

    def check_blocks(self, blocks: tuple[str, ...], attentions: tuple[str, ...], supported: str) -> None:
        """Raise PruneError if a block or its attention is of another class than those named."""
        for index, block in enumerate(self.blocks):
            kind, attention = type(block).__name__, type(getattr(block, "attn", None)).__name__
            if kind not in blocks or attention not in attentions:
                raise PruneError(
                    f"block {index} of {type(self.model).__name__} is a {kind} with {attention}, which has no place between attention "
                    f"and MLP where tokens could leave; supported: {supported}"
                )

    def scale(self, block: nn.Module) -> float:
        a: Any = block.attn
        return float(a.scale)

    def check_sites(self, sites: list[Site]) -> None:
        pool = getattr(self.model, "attn_pool", None)
        if pool is not None and any(site.adaptive for site in sites) and type(pool).__name__ != "AttentionPoolLatent":
            raise PruneError(f"{type(pool).__name__} takes no mask, which images with different numbers of tokens need")

    def install(self, engine: Engine) -> None:
        model: Any = self.model
        engine.replace(model, "forward_intermediates", partial(full_intermediates, model))
        pool = getattr(model, "attn_pool", None)
        if pool is not None:
            if any(site.adaptive for site in engine.sites):
                engine.hook(pool.register_forward_pre_hook(partial(hide_padding, engine), with_kwargs=True))
        elif model.global_pool in ("avg", "avgmax", "max"):
            if hasattr(model, "pool"):
                engine.replace(model, "pool", partial(sized_pool, model))
            else:
                engine.replace(model, "forward_head", partial(sized_head, model))


class OpenedTimm(Opened, TimmFamily):
    """A model whose attention is made of `qkv` or its parts, `norm`, `proj` and two dropouts."""

    @abstractmethod
    def fused(self, block: nn.Module) -> bool:
        """Whether the block's attention is, at present, nothing but projections and scaled_dot_product_attention."""

    def opens(self, block: nn.Module) -> bool:
        a: Any = block.attn
        return self.fused(block) and unheard(a) and unheard(a.attn_drop)

    def close(self, block: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
        a: Any = block.attn
        return self.residual(block, x, a.proj_drop(a.proj(a.norm(mixed))))

    def dropout(self, block: nn.Module) -> float:
        a: Any = block.attn
        return float(a.attn_drop.p) if a.training else 0.0

    @abstractmethod
    def residual(self, block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        """x plus the output of the attention."""


def in_three_parts(attention: nn.Module, x: Tensor) -> Tensor:
    """q, k and v side by side, from a layer whose bias, if it has one, lies beside it in three parts."""
    a: Any = attention
    if a.q_bias is None:
        out: Tensor = a.qkv(x)
        return out
    return nn.functional.linear(x, a.qkv.weight, torch.cat([a.q_bias, a.k_bias, a.v_bias]))


def replace_first(smaller: Callable[[Tensor], Tensor], _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: the smaller image in place of the image."""
    return smaller(args[0]), *args[1:]


def hide_padding(engine: Engine, _pool: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give attention pooling a mask [B, 1, 1, L] where images have different numbers of tokens."""
    state = engine.states.current()
    weight = None if state is None or state.last is None else state.last.weight(sized=False)
    if weight is None:
        return None
    log = torch.nn.functional.pad(weight.squeeze(-1).log(), (args[0].shape[1] - weight.shape[1], 0))
    return args, {**kwargs, "attn_mask": log[:, None, None].to(args[0].dtype)}


def sized_pool(self: Any, x: Tensor, pool_type: str | None = None) -> Tensor:
    """timm's `pool` with averages weighted by token size, without padding; x [B, P+N, C] -> [B, C]."""
    kind = self.global_pool if pool_type is None else pool_type
    size = last_size(self)
    if kind not in ("avg", "avgmax", "max") or size is None:
        pooled: Tensor = type(self).pool(self, x, pool_type)
        return pooled
    first = 0 if getattr(self, "pool_include_prefix", False) else self.num_prefix_tokens
    weight = torch.nn.functional.pad(size.to(x.dtype), (0, 0, self.num_prefix_tokens - first, 0), value=1.0)
    mean = (x[:, first:] * weight).sum(dim=1) / weight.sum(dim=1)
    if kind == "avg":
        return mean
    highest = x[:, first:].masked_fill(weight == 0, float("-inf")).amax(dim=1)
    return highest if kind == "max" else 0.5 * (highest + mean)


def sized_head(self: Any, x: Tensor, pre_logits: bool = False) -> Tensor:
    """timm's `forward_head` of models that average inside it: patch tokens are scaled so that their plain mean is the weighted one."""
    size = last_size(self)
    if size is not None:
        x = weighed(x, size, self.num_prefix_tokens)
    out: Tensor = type(self).forward_head(self, x, pre_logits=pre_logits)
    return out


def full_intermediates(self: Any, *args: Any, **kwargs: Any) -> Any:
    """timm's `forward_intermediates` with every feature on the full grid again, as maps or as lists; the final tokens, which
    `forward_head` takes, stay those that are left."""
    from timm.models._features import feature_take_indices

    engine: Engine = self._sparsight
    bound = inspect.signature(type(self).forward_intermediates).bind(self, *args, **kwargs)
    bound.apply_defaults()
    taken = sorted(set(feature_take_indices(len(engine.family.blocks), bound.arguments["indices"])[0]))
    maps = bound.arguments["output_fmt"] == "NCHW"
    if maps:
        bound.arguments["output_fmt"] = "NLC"
    result = entered(self, "forward_intermediates", *bound.args[1:], **bound.kwargs)
    state = engine.states.current()
    assert state is not None

    def full(block: int, feature: Any) -> Any:
        if isinstance(feature, tuple):
            return (full(block, feature[0]), *feature[1:])
        tokens = engine.restore(state, feature, block)
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *engine.family.grid_of(state)) if maps else tokens

    if isinstance(result, dict):
        key = "image_intermediates"
        return {**result, key: [full(i, feature) for i, feature in zip(taken, result[key], strict=True)]}
    features = [full(i, feature) for i, feature in zip(taken, result if isinstance(result, list) else result[1], strict=True)]
    return features if isinstance(result, list) else (result[0], features)
