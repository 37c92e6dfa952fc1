"""Statistics of softmax attention from queries and keys, without the [B, H, N, N] matrix.

Shapes everywhere: q [B, H, P+N, D], k [B, G, P+N, D] with H a multiple of G (grouped queries), prefix tokens (class, distillation,
register) first; scale multiplies the logits. Optional everywhere:
mask    expands to [B, H, P+N, P+N] as in scaled_dot_product_attention: True where a query may look, or numbers added to the logits.
valid   [B, P+N] bool: real tokens ([B, N]: all prefix tokens are). Padding is not looked at, and its own rows do not count: 0 in columns, infinite entropy.
A query that may look at nothing counts as padding. Half precision is computed in float32. Memory is that of one block of rows.
`backend` says which code runs, docs/explanation/attention.md why.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from . import attention_streamed
from . import attention_torch as plain
from .attention_shared import Attended
from .attention_torch import Rows as Work
from .attention_torch import exact
from .portable import tracing

Heads = Literal["mean", "joint", "average"]
Rows = Literal["all", "patches"]
WIDEST = 128
"""Largest head dimension that the Triton kernels take."""

Backend = Literal["explicit", "streamed", "triton"]


def class_row(
    q: Tensor,
    k: Tensor,
    prefix: int,
    scale: float,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    attended: Attended | None = None,
) -> Tensor:
    """Return the class token's (position 0) attention row over the patches, from the softmax over all keys, not renormalised.
    q, k [B, H, P+N, D] -> [B, H, N]. attended: may begin what norms of its columns go on with."""
    first = None
    if attended is not None and attended.takes(q, k, scale, 2, mask, valid):
        first = attended.first_row()
    if first is None:
        mask = visible(q, k, mask, real(valid, k))
        first = chosen_rows(q[:, :, :1], k, scale, None if mask is None else mask[:, :, :1])[:, :, 0]
    return first[..., prefix:]


def query_rows(
    q: Tensor, k: Tensor, scale: float, index: Tensor, mask: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Return the softmax rows of the queries at positions `index` [T]; fully masked queries give zeros. -> [B, H, T, P+N]"""
    valid = real(valid, k)
    mask = visible(q, k, mask, valid)
    return chosen_rows(q.index_select(2, index), k, scale, None if mask is None else mask.index_select(2, index))


def chosen_rows(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Compute a few softmax rows explicitly. q [B, H, T, D], mask [B, H, T, K] -> [B, H, T, K]"""
    rows = Work(exact(q), exact(k), scale).full_keys()
    logits = plain.products(rows.q * scale, rows.k)
    if mask is None:
        return logits.softmax(dim=-1)
    logits = plain.masked(logits, mask)
    return logits.softmax(dim=-1).masked_fill(logits <= plain.FLOOR / 2, 0)


def check_stride(stride: int) -> int:
    """Validate the query stride (>= 1)."""
    if stride < 1:
        raise PruneError(f"stride={stride} must be 1 (every query row) or more")
    return stride


def column_norm(
    q: Tensor,
    k: Tensor,
    prefix: int,
    scale: float,
    order: float,
    heads: Heads = "mean",
    rows: Rows = "patches",
    diagonal: bool = True,
    *,
    stride: int = 1,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    attended: Attended | None = None,
) -> Tensor:
    """Compute the p-norm of every patch's attention column, ||A_:j||_p, columns not normalised. q, k [B, H, P+N, D] -> [B, N].

    order: any number above 0, infinity too. heads: "mean" of the per-head norms, "joint" norm over heads and rows, norm of the
    "average" matrix. rows: query rows of the "patches" alone or of "all" tokens. diagonal: whether A_jj counts.
    stride: above 1 an approximation: every stride-th row stands for that many; the diagonal is added for all, its logits exact, its
    normalisers estimated from every stride-th key. Raises PruneError for a stride below 1. attended: gets the attention's output
    where it can be made in the same pass.
    """
    check_stride(stride)
    start = prefix if rows == "patches" else 0
    average = heads == "average"
    plainly = stride == 1 and diagonal and not average
    if attended is not None and plainly and attended.takes(q, k, scale, order, mask, valid):
        norms = attended.columns(order, start)
    else:
        valid = real(valid, k)
        work = setting(q, k, scale, visible(q, k, mask, valid), valid)
        if stride > 1:
            norms = sampled_columns(work, start, stride, order, diagonal, average)
        else:
            norms = columns(cut(work, start, 1), order, diagonal, average)
    norms = norms[..., prefix:]
    return together(norms, order) if heads == "joint" else norms.mean(dim=1)


def column_mean(
    q: Tensor,
    k: Tensor,
    prefix: int,
    scale: float,
    rows: Rows = "patches",
    *,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Compute the mean attention that each patch receives from the chosen rows, averaged over heads. q, k [B, H, P+N, D] -> [B, N]."""
    start = prefix if rows == "patches" else 0
    valid = real(valid, k)
    count = q.shape[2] - start if valid is None else valid[:, start:].sum(dim=1, keepdim=True).clamp(min=1)
    return column_norm(q, k, prefix, scale, 1.0, "mean", rows, mask=mask, valid=valid) / count


def row_entropy(
    q: Tensor,
    k: Tensor,
    prefix: int,
    scale: float,
    order: float,
    *,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    attended: Attended | None = None,
) -> Tensor:
    """Compute the Renyi entropy (nats) of every patch's attention row, averaged over heads; order 1 is Shannon entropy.

    The row is the softmax over the patch keys alone, the diagonal included. q, k [B, H, P+N, D] -> [B, N]. attended: as above.
    """
    found = None
    if attended is not None and attended.takes(q, k, scale, order, mask, valid):
        found = attended.entropies(order, prefix)
    return (head_entropy(q, k, prefix, scale, order, mask, valid) if found is None else found).mean(dim=1)


def head_entropy(
    q: Tensor, k: Tensor, prefix: int, scale: float, order: float, mask: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Compute `row_entropy` without averaging over heads: -> [B, H, N]."""
    valid = real(valid, k)
    mask = visible(q, k, mask, valid)
    work = cut(setting(q, k[:, :, prefix:], scale, mask, valid), prefix, 1)
    if work.mask is not None:
        work = replace(work, mask=work.mask[..., prefix:])
    if plain.near_one(order):
        return plain.row_values(replace(work, q=exact(work.q), k=exact(work.k)), order)
    found: Tensor = kernels(work).row_values(work, order)
    return found


def row_normalisers(q: Tensor, k: Tensor, scale: float, *, mask: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """Compute the log-sum-exp of every row of logits, -inf for padding. q, k [B, H, P+N, D] -> [B, H, P+N]."""
    valid = real(valid, k)
    return lse(setting(q, k, scale, visible(q, k, mask, valid), valid))


def lse(work: Work) -> Tensor:
    found: Tensor = kernels(work).row_values(work, None)
    return found


def columns(work: Work, order: float, diagonal: bool, average: bool) -> Tensor:
    """Dispatch column norms to a back end: [B, H, P+N], or [B, 1, P+N] of the head average (always explicit)."""
    if average:
        return plain.columns(replace(work, q=exact(work.q), k=exact(work.k)), order, diagonal, average)
    found: Tensor = kernels(work).columns(work, order, diagonal)
    return found


def sampled_columns(work: Work, start: int, stride: int, order: float, diagonal: bool, average: bool) -> Tensor:
    """Estimate column norms from every stride-th query row from `start` on, plus the exact diagonal."""
    some = cut(work, start, stride)
    rows, taken = work.q.shape[2] - start, some.q.shape[2]
    others = columns(some, order, False, average)
    # each column's other rows: one less is in the sample where its own row is
    sampled = sampled_places(work, start, stride)
    others = others * ((rows - 1) / (taken - sampled.to(others.dtype)).clamp(min=1)) ** (1 / order)
    if not diagonal:
        return others
    own = own_attention(replace(work, q=exact(work.q), k=exact(work.k)), start, stride)
    own = own.mean(dim=1, keepdim=True) if average else own
    return together(torch.stack([others, own], dim=1), order)


def own_attention(work: Work, start: int, stride: int) -> Tensor:
    """Estimate the diagonal A_jj (0 before `start`): exact logits, denominators from every stride-th key, all prefix keys and the key
    itself. -> [B, H, P+N]"""
    full = work.full_keys()
    logit = (full.q * full.k).sum(-1) * full.scale
    if full.mask is not None:
        logit = plain.masked(logit, full.mask.diagonal(dim1=-2, dim2=-1))
    place = torch.arange(full.q.shape[2], device=full.q.device)
    keys = torch.cat([place[:start], place[start::stride]])
    times = max(1, place.shape[0] - start - 1) / (keys.shape[0] - start)
    weight = torch.where(keys < start, 0.0, math.log(times)).to(logit.dtype)
    mask = weight.expand(*logit.shape, -1) if full.mask is None else weighed(full.mask, keys, weight)
    denominator = lse(replace(full, k=full.k[:, :, keys], mask=mask))
    # the own key counts once: of sampled rows it is in the sum several times, of the others not at all
    own_times = torch.where(sampled_places(work, start, stride), 1 - times, 1.0)
    share = ((denominator - logit).exp() + own_times).clamp(min=1).reciprocal()
    own: Tensor = share.masked_fill((place < start) | denominator.isneginf(), 0)
    return own


def sampled_places(work: Work, start: int, stride: int) -> Tensor:
    """Mask [P+N] of every stride-th position from `start` on."""
    place = torch.arange(work.q.shape[2], device=work.q.device)
    return (place >= start) & ((place - start) % stride == 0)


def weighed(mask: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """Add a log weight per key to the mask of some keys."""
    mask = mask.index_select(-1, keys)
    return torch.where(mask, weight, plain.FLOOR) if mask.dtype == torch.bool else mask + weight


def together(norms: Tensor, order: float) -> Tensor:
    """Combine norms over dimension 1 into one p-norm, scaled by the largest so that no power underflows."""
    if math.isinf(order):
        return norms.amax(dim=1)
    top = norms.amax(dim=1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
    return (norms / top).pow(order).sum(dim=1).pow(1 / order) * top.squeeze(1)


def cut(work: Work, start: int, step: int) -> Work:
    """Slice the query rows: every step-th from `start` on."""
    mask = None if work.mask is None else work.mask[:, :, start::step]
    alive = None if work.alive is None else work.alive[:, start::step]
    return Work(work.q[:, :, start::step], work.k, work.scale, mask, alive, start, step)


def real(valid: Tensor | None, k: Tensor) -> Tensor | None:
    """Expand a padding mask [B, N] to [B, P+N]; prefix tokens are never padding."""
    if valid is None or valid.dim() != 2:
        return valid
    return torch.nn.functional.pad(valid, (max(0, k.shape[2] - valid.shape[1]), 0), value=True)


def visible(q: Tensor, k: Tensor, mask: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Merge attention mask and padding mask into one, expanded (not copied) to [B, H, P+N, P+N]. Raises PruneError if it does not fit."""
    if q.shape[1] % k.shape[1]:
        raise PruneError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads: not a multiple")
    shape = (*q.shape[:3], k.shape[2])
    if valid is not None:
        if valid.shape != (q.shape[0], k.shape[2]) or valid.dtype != torch.bool:
            raise PruneError(f"valid must be bool [B, P+N] = {[q.shape[0], k.shape[2]]}, got {valid.dtype} {list(valid.shape)}")
        seen = valid[:, None, None]
        mask = seen if mask is None else mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, plain.FLOOR)
    if mask is None:
        return None
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise PruneError(f"mask {list(mask.shape)} does not expand to [B, H, P+N, P+N] = {list(shape)}") from None


def setting(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, valid: Tensor | None) -> Work:
    """Collect the inputs; cast to float32 unless the Triton kernels take half precision as it is."""
    work = Work(q, k, scale, mask, valid)
    return work if q.dtype == k.dtype and backend(work) == "triton" else replace(work, q=exact(q), k=exact(k))


def backend(work: Work) -> Backend:
    """Choose the back end; docs/explanation/attention.md has the reasons."""
    traced = tracing() or work.q.device.type == "meta"
    learning = torch.is_grad_enabled() and (work.q.requires_grad or work.k.requires_grad)
    if traced or learning:
        return "explicit"
    if work.q.device.type == "cuda" and has_triton() and work.q.dtype != torch.float64 and work.q.shape[3] <= WIDEST:
        return "triton"
    return "streamed" if work.q.device.type == "cpu" else "explicit"


def kernels(work: Work) -> ModuleType:
    """The module with the back end's `columns` and `row_values`."""
    name = backend(work)
    if name == "triton":
        from . import attention_triton

        return attention_triton
    return attention_streamed if name == "streamed" else plain


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
