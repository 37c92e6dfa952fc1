"""Batches whose images have different numbers of tokens: real tokens first, padding last, valid [B, N] says which is which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan

Outcome = tuple[Tensor | None, Plan, Tensor | None, Tensor | None]
"""Tokens, plan, sizes, score, as a site gives them back."""

TOKENS = {
    **dict.fromkeys(("x", "feats", "size", "position", "token_weight", "shallow_token_weight"), 1),
    **dict.fromkeys(("class_attn", "text_attn", "q", "k", "v", "attn", "shallow_class_attn", "shallow_q", "shallow_k"), 2),
}
"""Signals with a row per token, and the dimension of the rows."""


def by_count(work: Callable[[dict[str, Any]], Outcome], given: dict[str, Any]) -> Outcome:
    """Apply `work` to unpadded signals, grouped by token count, so that an image gets what it gets alone.
    given["valid"] [B, N] is taken out; everything else is cut to the images' own tokens."""
    valid: Tensor = given["valid"]
    counts = valid.sum(dim=1)
    groups = [(n, torch.nonzero(counts == n).flatten()) for n in sorted(set(counts.tolist()))]
    rest = {name: value for name, value in given.items() if name != "valid"}
    done = [(rows, work({name: cut(name, value, rows, n, valid) for name, value in rest.items()})) for n, rows in groups]
    return together(done, *valid.shape)


def cut(name: str, value: Any, rows: Tensor, n: int, valid: Tensor) -> Any:
    """Select some images and strip their padding; the prefix tokens of q, k, v and attn stay."""
    batch, padded = valid.shape
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != batch:
        return value
    value = value.index_select(0, rows)
    if name not in TOKENS:
        return value
    axis = TOKENS[name]
    spare = padded - n
    value = value.narrow(axis, 0, value.shape[axis] - spare)
    return value.narrow(3, 0, value.shape[3] - spare) if name == "attn" else value


def together(done: list[tuple[Tensor, Outcome]], batch: int, total: int) -> Outcome:
    """Merge the outcomes of groups of images into one batch, padded to the largest count."""
    rows = torch.cat([rows for rows, _ in done]).argsort()
    plans = [outcome[1] for _, outcome in done]
    slots = max(plan.slots for plan in plans)
    fused = any(plan.fused for plan in plans)

    def join(parts: list[Tensor], width: int, fill: float) -> Tensor:
        return torch.cat([padded(part, width, fill) for part in parts]).index_select(0, rows)

    keep = join([plan.keep for plan in plans], slots - int(fused), -1)
    merged = join([plan.owner for plan in plans], total, -1) if fused or any(p.merged is not None for p in plans) else None
    valid = join([real(plan) for plan in plans], slots, 0)
    plan = Plan(keep, total, merged, fused, valid=None if bool(valid.all()) else valid)

    def joined(parts: list[Tensor | None], width: int, fill: float) -> Tensor | None:
        known = [part for part in parts if part is not None]
        return join(known, width, fill) if len(known) == len(parts) else None

    x = joined([outcome[0] for _, outcome in done], slots, 0)
    size = joined([outcome[2] for _, outcome in done], slots, 0)
    score = joined([outcome[3] for _, outcome in done], total, float("-inf"))
    return x, plan, size, score


def real(plan: Plan) -> Tensor:
    """Mask [B, slots] of the slots that are not padding."""
    if plan.valid is not None:
        return plan.valid
    return torch.ones(plan.keep.shape[0], plan.slots, dtype=torch.bool, device=plan.keep.device)


def padded(part: Tensor, width: int, fill: float) -> Tensor:
    """Pad [b, n, ...] with rows of `fill` to [b, width, ...]."""
    spare = width - part.shape[1]
    if not spare:
        return part
    return torch.cat([part, part.new_full((part.shape[0], spare, *part.shape[2:]), fill)], dim=1)
