"""Attention of chosen modules, heard through transformers' attention interface.

Read with transformers 5.23. An attention module gets a copy of its configuration in which the implementation is called `sparsight`, a name
that is registered once; it notes queries, keys and values, after RoPE, for the call under way that listens to this module, and hands on to
the implementation that the model's own configuration names at that time. Nothing else of the model sees that copy.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .call_state import calls

NAME = "sparsight"
LOSS = ("num_items_in_batch",)
"""Arguments for the loss that transformers' Trainer sends through the whole model."""


@dataclass(frozen=True, eq=False)
class Attended:
    """One call of an attention: q [B, H, S, D], k and v [B, G, L, D] with what was cached in front, the mask as the implementation got it, the
    factor of the logits, their softcap, what goes without a mask (the window, and whether tokens see only what is before them), and other
    arguments that change the weights."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Any
    scale: float
    softcap: float | None = None
    window: int | None = None
    causal: bool = True
    others: tuple[str, ...] = ()

    def seen(self, sample: int, queries: Tensor) -> Tensor:
        """What queries [T] of a sample may look at, [T, L]."""
        count, keys = self.q.shape[2], self.k.shape[2]
        if self.mask is not None and len(self.mask.shape) == 4:
            return dense(self.mask, self.q.shape[0], count, keys)[sample, queries]
        place, at = torch.arange(keys, device=queries.device), (queries + keys - count).unsqueeze(1)
        seen = place <= at if self.causal else torch.ones_like(place <= at)
        if self.window is not None:
            seen = seen & (place > at - self.window)
        return seen if self.mask is None else seen & self.mask[sample, -keys:].bool()


def dense(mask: Any, batch: int, queries: int, keys: int) -> Tensor:
    """A mask of four dimensions as bool [B, queries, keys]: which keys each query may see."""
    if not isinstance(mask, Tensor):  # of flex_attention
        b, q, k = (torch.arange(n, device=mask.kv_num_blocks.device) for n in (batch, queries, keys))
        made: Tensor = mask.mask_mod(b.view(-1, 1, 1), b.new_zeros(1, 1, 1), q.view(1, -1, 1), k.view(1, 1, -1))
        return made.expand(batch, queries, keys)
    one = mask[:, 0]
    return (one if one.dtype == torch.bool else one > torch.finfo(one.dtype).min / 2).expand(batch, queries, keys)


class AttentionListener:
    """Copied configurations of attention modules, until `remove`."""

    def __init__(self, modules: Iterable[Any]) -> None:
        self.modules = list(modules)

    def install(self) -> AttentionListener:
        register()
        for module in self.modules:
            if "_sparsight_config" not in module.__dict__:  # one module may be heard twice
                module._sparsight_config = module.config
                module.config = copy.copy(module.config)
                module.config._attn_implementation_internal = NAME
        return self

    def remove(self) -> None:
        for module in self.modules:
            if "_sparsight_config" in module.__dict__:
                module.config = module.__dict__.pop("_sparsight_config")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register()


def register() -> None:
    """Let transformers know the name, in this process."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any) -> Any:
    """The implementation `sparsight`: note what it is given for the call that listens to this module, and run the model's own."""
    for call in calls():
        note = getattr(call, "note", None)
        if note is not None and module in call.heard:
            scale = more.get("scaling")
            others = tuple(
                name for name, value in more.items() if name not in LOSS and isinstance(value, Tensor) and value.is_floating_point()
            )
            note(
                module,
                Attended(
                    query.detach(),
                    key.detach(),
                    value.detach(),
                    attention_mask,
                    query.shape[-1] ** -0.5 if scale is None else float(scale),
                    more.get("softcap"),
                    more.get("sliding_window"),
                    getattr(module, "is_causal", True),
                    others,
                ),
            )
            break
    forward: Any = inspect.unwrap(type(module).forward)
    eager = next((name for name in forward.__code__.co_names if name.endswith("eager_attention_forward")), "")
    known = forward.__globals__
    own = known["ALL_ATTENTION_FUNCTIONS"].get_interface(module._sparsight_config._attn_implementation, known.get(eager))
    return own(module, query, key, value, attention_mask, **more)


def uses_interface(module: nn.Module) -> bool:
    """Whether a module asks transformers' attention interface for its implementation, by a configuration of its own."""
    return "config" in module.__dict__ and asks_interface(type(module).forward)


@cache
def asks_interface(forward: Callable[..., Any]) -> bool:
    """Whether the forward of a class asks for it."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def attention_in(block: nn.Module) -> nn.Module | None:
    """The attention module of a block."""
    return next((module for module in block.modules() if uses_interface(module)), None)
