"""What a decoder layer is given besides its hidden states, for the tokens that are left.

Nothing is known by a list of names: a tensor that has an entry for every token follows them, RoPE by the places and the shift that positions
have, masks are made anew. What has such entries in a shape that is not understood, or keeps states of all tokens, is refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from .language import TRY, attentions, parameters
from .masks import kind_of, laid_over, make_mask, overlay
from .sequence import Sequence, take
from .wrapped_method import named

MASK, CACHES = "attention_mask", ("past_key_values", "cache_params")
FIXED = ("hidden_states", "position_ids", *CACHES)
"""Arguments that do not follow. Position ids serve to detect packed sequences only, and gaps in them would look like that: they go."""


class Peeked(Exception):
    """Ends a layer that runs ahead for its queries and keys alone."""


@dataclass(frozen=True, eq=False)
class LayerInput:
    """number: of the layer. hidden [B, n, C]; args and kwargs: all else that it is called with, by place and by name."""

    layer: Any
    number: int
    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def read(layer: Any, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerInput:
        hidden = args[0] if args else kwargs["hidden_states"]
        return LayerInput(layer, number, hidden, args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of `args`."""
        return parameters(type(self.layer))[2 : 2 + len(self.args)]

    @property
    def named(self) -> dict[str, Any]:
        return {**dict(zip(self.names, self.args, strict=False)), **self.kwargs}

    @property
    def cache(self) -> Any:
        return next((self.named[name] for name in CACHES if self.named.get(name) is not None), None)

    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As a hook before the layer returns it."""
        return (self.hidden, *self.args), self.kwargs

    def shortened(self, forward: Any, now: Sequence) -> LayerInput:
        """The same for the tokens that are left."""
        mask = self.named.get(MASK)
        if now.plain and mask is None:
            return self
        if not now.own:
            mask = mask_of(self, forward, now)
        elif not forward.cut:
            return self
        if MASK not in self.named:
            raise PruneError(f"{type(self.layer).__name__} is given no attention_mask, so what has left would still be seen; {TRY}")
        if forward.cut:
            mask = mask[:, :, -1:] if isinstance(mask, Tensor) and mask.dim() == 4 else mask
            now = replace(now, index=now.index[:, -1:], place=now.places[:, -1:])

        def fit(name: str, value: Any) -> Any:
            if name == MASK:
                return mask
            if name in FIXED:
                return None if name == "position_ids" else value
            return follow(forward, value, now, name)

        args = tuple(fit(name, value) for name, value in zip(self.names, self.args, strict=False))
        kwargs = {name: fit(name, value) for name, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    def peek(self, forward: Any, module: nn.Module) -> None:
        """Let the layer run ahead until its attention is heard, and leave no trace of it."""

        def fresh(value: Any) -> Any:
            if hasattr(value, "get_seq_length"):
                return PeekCache(value)
            return copy.copy(value) if shelf(value) else value

        forward.peeking = module
        try:
            self.layer.forward(self.hidden, *map(fresh, self.args), **{name: fresh(value) for name, value in self.kwargs.items()})
        except Peeked:
            pass
        finally:
            forward.peeking = None


class PeekCache:
    """A cache that is looked into: nothing stays of what is added to it."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_more: Any, **_others: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer with those that it has in front."""
        known = self.cache.layers[layer] if layer < len(self.cache.layers) else None
        if known is None or getattr(known, "keys", None) is None or not known.keys.numel():
            return keys, values
        return torch.cat([known.keys.to(keys), keys], dim=2), torch.cat([known.values.to(values), values], dim=2)


@dataclass(frozen=True, eq=False)
class RotaryCall:
    """A call of a module that makes RoPE of position ids."""

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def again(self, shift: Tensor) -> Any:
        """What it makes of position ids [B, n] that lie `shift` [B] further back."""
        call = named(self.module.forward, self.args, self.kwargs)
        position = call["position_ids"]
        return self.module.forward(**{**call, "position_ids": position - shift.to(position.device).unsqueeze(1)})


def mask_of(given: LayerInput, forward: Any, now: Sequence) -> Any:
    """The mask of a layer, for the tokens that are left; the one that it is given is for all."""
    config, number, count = forward.owner.model.config, given.number, now.index.shape[1]
    kind = kind_of(config, number)
    if kind in now.masks:
        return now.masks[kind]
    causal = getattr(next(iter(attentions(given.layer)), None), "is_causal", True)
    if kind not in forward.overlays:
        valid = None if forward.full or forward.mask is None else forward.mask[:, forward.start :]
        forward.overlays[kind] = overlay(
            kind, config, given.named.get(MASK), given.hidden, forward.length, forward.start, valid, causal
        )
    more, skip = forward.overlays[kind], causal and forward.overlays[kind] is None
    seen = now.keys is None and count == 1 and kind == "full_attention"
    mask = None if seen else make_mask(kind, config, given.hidden, now.keys, forward.cache, number, skip=skip)
    if more is not None:
        index, there = (part.to(more.device) for part in (now.index.clamp(min=0), now.index >= 0))
        rows = more.gather(1, index.unsqueeze(2).expand(-1, -1, more.shape[2]))
        mask = laid_over(mask, take_columns(rows, index) & there.unsqueeze(1) & there.unsqueeze(2))
    now.masks[kind] = mask
    return mask


def take_columns(values: Tensor, index: Tensor) -> Tensor:
    """Columns [B, m, n] of values [B, m, L] by index [B, n]."""
    return values.gather(2, index.unsqueeze(1).expand(-1, values.shape[1], -1))


def follow(forward: Any, value: Any, now: Sequence, name: str) -> Any:
    """Something that a layer is given, for the tokens that are left, where it has an entry for every token."""
    call = next((one for one in forward.rotary if one.output is value), None)
    if call is not None or isinstance(value, tuple | list):
        key = (id(value), forward.cut)
        if key not in now.ropes:
            now.ropes[key] = (value, rope_of(forward, value, call, now, name))
        return now.ropes[key][1]
    if isinstance(value, Tensor):
        return left_of(forward, value, now.index.clamp(min=0), name)
    if forward.pruned and shelf(value):
        held = (one for part in value.values() for one in (part if isinstance(part, tuple | list) else (part,)))
        if any(isinstance(one, Tensor) and forward.length in one.shape[1:] for one in held):
            raise PruneError(f"{name} holds states of all tokens, which the layers share; {TRY}")
    return value


def shelf(value: Any) -> bool:
    """Whether layers may leave something for each other in it."""
    return callable(getattr(value, "values", None)) and not isinstance(value, Tensor) and not hasattr(value, "get_seq_length")


def rope_of(forward: Any, value: Any, call: RotaryCall | None, now: Sequence, name: str) -> Any:
    """RoPE, or another tuple, for the tokens that are left: at the places and by the shift that positions have."""
    turned = call is not None or name.startswith("position_embeddings")
    if turned and now.shift is not None:
        if call is None:
            raise PruneError(
                f"nobody knows how {name} is made, so positions cannot be renumbered behind a cache; use positions=original"
            )
        value = call.again(now.shift)
    place = now.places if turned else now.index.clamp(min=0)
    if isinstance(value, Tensor):
        return left_of(forward, value, place, name)
    return type(value)(left_of(forward, part, place, name) if isinstance(part, Tensor) else part for part in value)


def left_of(forward: Any, value: Tensor, place: Tensor, name: str) -> Tensor:
    """Entries [B, n, ...] at `place` of a tensor that has one for every token, [B or 1, length, ...]; others are as they were."""
    if not (forward.pruned or forward.cut) or forward.length not in value.shape[1:]:
        return value
    if value.shape[1] != forward.length or value.shape[0] not in (1, place.shape[0]):
        raise PruneError(
            f"a layer is given {name} {list(value.shape)} for {forward.length} tokens, and pruning does not know how to shorten it; {TRY}"
        )
    return take(value, place.to(value.device))
