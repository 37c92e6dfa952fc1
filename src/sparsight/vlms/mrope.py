"""Positions with axes (M-RoPE): made for the full prompt by the model's own `get_rope_index`, of which the tokens that stay keep theirs.

Read with transformers 5.23, where these models go by the ids and grids of a whole prompt. What comes after an image goes on from the full
prompt's end: how far positions run ahead of the number of tokens is remembered beside the cache (`PromptMap.ahead`).
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .prompt import take
from .request import VlmRequest

OTHER_NAMES = {"second_per_grids": "video_second_per_grid", "audio_seqlens": "audio_feature_lengths"}
"""Arguments of `get_rope_index` that the model's forward calls otherwise."""


def set_positions(core: Any, request: VlmRequest) -> None:
    """Position ids [axes, B, L] of the shortened prompt; with images made smaller those of the prompt that has them."""
    user, new, index = request.user, request.new, request.index
    takes = inspect.signature(core.get_rope_index).parameters
    request.drop([name for name in (*takes, *OTHER_NAMES.values()) if name not in ("input_ids", "attention_mask")])
    mask = None if request.mask is None else request.along(request.mask)
    types = None if user.get("mm_token_type_ids") is None else request.along(user["mm_token_type_ids"])
    if request.smaller:
        new, mask, types = take(new, index), request.own, None if types is None else take(types, index)
        index = torch.arange(index.shape[1], device=index.device).where(index >= 0, -1)
    real = torch.full((request.batch,), new.shape[1], device=new.device) if mask is None else mask.sum(dim=1)
    if request.encoded and (types is not None or "mm_token_type_ids" not in takes):
        more = {name: value for name in takes if (value := of_images(request, name)) is not None}
        more.update({} if types is None or "mm_token_type_ids" not in takes else {"mm_token_type_ids": types})
        mask = torch.ones_like(new) if mask is None and types is None else mask
        full, delta = core.get_rope_index(input_ids=new, attention_mask=mask, **more)
        ends = real + delta.reshape(request.batch)
    else:
        # without token types the untouched model counts in one dimension, too
        line = torch.arange(new.shape[1], device=new.device).expand(request.batch, -1) if mask is None else counted(mask)
        full, ends = line.expand(axes(core), -1, -1), real
    shorten_positions(core, request, full, ends, index)


def of_images(request: VlmRequest, name: str) -> Any:
    """An argument of `get_rope_index` that speaks of images, videos or sounds: of images and videos only the new ones' part."""
    if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        return None
    source = OTHER_NAMES.get(name, name)
    value = request.smaller.get(source, request.user.get(source))
    if name == "audio_seqlens":
        heard = request.user.get("feature_attention_mask")
        return value if heard is None else heard.sum(dim=-1)
    if not isinstance(value, Tensor):
        return value
    return request.chosen("video" if "video" in source or source.startswith("second") else "image", value)


def axes(core: Any) -> int:
    """Number of axes of the language model's positions."""
    sections = (getattr(core.config.get_text_config(), "rope_parameters", None) or {}).get("mrope_section")
    return 3 if sections is None else len(sections)


def shorten_positions(core: Any, request: VlmRequest, full: Tensor, ends: Tensor, index: Tensor) -> None:
    """Shorten positions full [axes, B, W] of the new part, which would go on at ends [B], both counted from the part's start, to those at
    index [B, L]."""
    length, cached = request.index.shape[1], torch.full_like(ends, request.cached)
    before = cached if request.before is None else request.before.sum(dim=1)
    so_far = torch.zeros_like(ends) if not request.cached else ahead(core, request, ends)
    position = take(full + (before + so_far).view(1, -1, 1), index)
    stay = torch.full_like(ends, length) if request.own is None else request.own.sum(dim=1)
    later = (so_far + ends - stay).unsqueeze(1)
    request.left = None if request.left is None else replace(request.left, ahead=later)
    if request.user.get("position_ids") is not None:
        return
    if request.generating:
        line = torch.arange(request.cached, request.cached + length, device=full.device).expand(request.batch, -1)
        if request.own is not None or request.before is not None:
            line = counted(request.full_mask())[:, request.cached :]
        position = torch.cat([line.unsqueeze(0).to(position), position])
    request.call["position_ids"] = position


def ahead(core: Any, request: VlmRequest, like: Tensor) -> Tensor:
    """How far positions run ahead of the number of real tokens in the cache, [B]."""
    known = core.rope_deltas if request.known is None else request.known.ahead
    if known is None or known.shape[0] != like.shape[0]:
        return torch.zeros_like(like)
    flat: Tensor = known.squeeze(1).to(like)
    return flat


def counted(mask: Tensor) -> Tensor:
    """Places of real tokens from 0, padding at 0."""
    return (mask.long().cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
