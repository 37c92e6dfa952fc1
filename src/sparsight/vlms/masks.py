"""Attention masks of the layers of a language model, by their kind: transformers' own functions make them for the tokens that are left.

Read with transformers 5.23. A model's mask is what these functions give by causality, window and padding, and whatever the model lets
tokens see besides (the other tokens of an image: Gemma 3, PaliGemma, Molmo 2). That rest is found by comparing the two (`overlay`); it
follows the tokens that are left, while windows and chunks count those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from .attention_listener import dense

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
STATE = ("linear_attention", "conv")
"""Layers that keep a running state instead of keys; their mask is that of the padding."""


def kind_of(config: Any, layer: int) -> str:
    """Of which kind the mask of a layer is."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return str(kinds[layer])
    if getattr(config, "sliding_window", None):
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) else "full_attention"


def make_mask(
    kind: str, config: Any, hidden: Tensor, valid: Tensor | None, cache: Any, layer: int | None, skip: bool = True
) -> Any:
    """The mask that transformers makes for this kind and attention implementation, at the length of the layer's cache. skip: it may be None
    where the implementation needs none."""
    from transformers import masking_utils as made

    if kind in STATE:
        return made.create_recurrent_attention_mask(config, hidden, None if valid is None else valid.to(torch.long), cache)
    functions = (made.create_causal_mask, made.create_sliding_window_causal_mask, made.create_chunked_causal_mask)
    make = dict(zip(ATTENTION, functions, strict=True))[kind]
    if kind == "sliding_attention" and not getattr(config, "sliding_window", None):
        make = made.create_causal_mask  # a configuration whose window is off
    more = {} if skip else {"allow_is_causal_skip": False}
    return make(config, inputs_embeds=hidden, attention_mask=valid, past_key_values=cache, layer_idx=layer, **more)


def overlay(
    kind: str, config: Any, mask: Any, like: Tensor, length: int, start: int, valid: Tensor | None, causal: bool
) -> Tensor | None:
    """What a model's own mask lets each of `length` new tokens see of the others besides causality, window and padding: bool [B, length,
    length], None for nothing. A PruneError if it hides anything that those do not. causal: without a mask, tokens see what is before them
    only."""
    if kind in STATE or length == 1 or (mask is None and causal) or (start and kind == "chunked_attention"):
        return None
    batch = like.shape[0]
    made = make_mask(kind, config, like.new_empty(batch, length, 1), valid, None, None, skip=False)
    if made is None or len(made.shape) != 4:
        return None  # FlashAttention, which goes by the module's own causality and window
    usual = dense(made, batch, length, length)
    own = torch.ones_like(usual) if mask is None else dense(mask, batch, length, mask.shape[-1])[:, :, -length:]
    asked = torch.ones(batch, 1, 1, dtype=torch.bool, device=own.device) if valid is None else valid.to(own.device).unsqueeze(2)
    if bool((usual & ~own & asked).any()):
        raise PruneError(
            f"the attention mask of a {kind} layer hides more than causality, window and padding do, and pruning does not know what that "
            "would be for the tokens that are left; prune before the language model instead (divprune, fps, col_ln ...)"
        )
    more = own & ~usual & asked
    return more if bool(more.any()) else None


def laid_over(mask: Any, more: Tensor) -> Any:
    """A mask [B, 1, n, L] with what is seen besides, more [B, n, n] of the last n keys."""
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise PruneError(
            "tokens of an image that see each other need a mask that this attention implementation does not take; "
            'use attn_implementation="sdpa" or "eager"'
        )
    wide = torch.nn.functional.pad(more, (mask.shape[-1] - more.shape[-1], 0)).unsqueeze(1)
    return mask | wide if mask.dtype == torch.bool else mask.masked_fill(wide, 0)
