"""Attention statistics as Triton kernels, forward only: a row pass (flash style, running maximum) and a column pass that reads its lse.

One program holds one block of rows (or of columns) of one head and walks over the other side; nothing N x N is written.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_torch import FLOOR, Rows

LSE, SHANNON, RENYI, MINIMUM = 0, 1, 2, 3
ANY, INFINITE = 0, -1
LOG2_E, LN_2 = tl.constexpr(math.log2(math.e)), tl.constexpr(math.log(2))
"""Logarithms are to base 2 inside, which is what the hardware has."""


@triton.jit  # type: ignore[untyped-decorator]
def load_tile(base, start, total, stride_row, stride_width, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows start .. start + ROWS of a [total, width] matrix, zeros outside."""
    row = start + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    place = base + row[:, None].to(tl.int64) * stride_row + column[None, :] * stride_width
    return tl.load(place, mask=(row[:, None] < total) & (column[None, :] < width), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def tile(a, b, at_a, at_b, n_a, n_b, scale, mask, stride_a, stride_b, MASKED: tl.constexpr, FLOOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits [OWN, WALK] times log2(e) in float32; hidden pairs have FLOOR, which is finite, so that 0 * it is 0."""
    logits = tl.dot(a, tl.trans(b), input_precision="ieee") * (scale * LOG2_E)
    if MASKED:
        place = mask + at_a[:, None].to(tl.int64) * stride_a + at_b[None, :].to(tl.int64) * stride_b
        inside = (at_a[:, None] < n_a) & (at_b[None, :] < n_b)
        logits = tl.maximum(logits + tl.load(place, mask=inside, other=0.0).to(tl.float32) * LOG2_E, FLOOR)
    return logits


@triton.jit  # type: ignore[untyped-decorator]
def place_of(total, heads, OWN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the block of `total` rows or columns begins that this program holds, and whose it is: number among the heads of all images,
    image, head. One axis of the grid for all: the others end at 65,535."""
    blocks = tl.cdiv(total, OWN)
    which = tl.program_id(0) // blocks
    return (tl.program_id(0) % blocks) * OWN, which.to(tl.int64), (which // heads).to(tl.int64), which % heads


@triton.jit  # type: ignore[untyped-decorator]
def row_kernel(  # type: ignore[no-untyped-def]
    q, k, mask, out, sqb, sqh, sqr, sqd, skb, skh, skr, skd, smb, smh, smr, smk, heads, repeat, n_rows, n_keys, width, scale, order,
    MASKED: tl.constexpr, WHAT: tl.constexpr, FLOOR: tl.constexpr, OWN: tl.constexpr, WALK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    start, which, image, head = place_of(n_rows, heads, OWN)
    row = start + tl.arange(0, OWN)
    queries = load_tile(q + image * sqb + head * sqh, start, n_rows, sqr, sqd, width, OWN, WIDTH)
    hidden = mask + image * smb + head * smh
    keys = k + image * skb + (head // repeat) * skh
    top = tl.full([OWN], FLOOR, tl.float32)
    total = tl.zeros([OWN], tl.float32)
    extra = tl.zeros([OWN], tl.float32)
    for at in range(0, n_keys, WALK):
        key = at + tl.arange(0, WALK)
        block = load_tile(keys, at, n_keys, skr, skd, width, WALK, WIDTH)
        logits = tile(queries, block, row, key, n_rows, n_keys, scale, hidden, smr, smk, MASKED, FLOOR)
        logits = tl.where(key[None, :] < n_keys, logits, 2 * FLOOR)
        higher = tl.maximum(top, tl.max(logits, 1))
        apart = logits - higher[:, None]
        weight = tl.exp2(apart)
        fade = tl.exp2(top - higher)
        if WHAT == 1:
            extra = fade * (extra + total * (top - higher)) + tl.sum(weight * apart, 1)
        if WHAT == 2:
            extra = extra * tl.exp2(order * (top - higher)) + tl.sum(tl.exp2(order * apart), 1)
        total = total * fade + tl.sum(weight, 1)
        top = higher
    found = top + tl.log2(total)
    dead = float("-inf")
    if WHAT == 1:
        found = tl.log2(total) - extra / total
    if WHAT == 2:
        found = (tl.log2(extra) - order * tl.log2(total)) / (1 - order)
    if WHAT == 3:
        found = tl.log2(total)
    if WHAT > 0:
        dead = float("inf")
    found = tl.where(top > FLOOR / 2, found * LN_2, dead)
    tl.store(out + which * n_rows + row, found, mask=row < n_rows)


@triton.jit  # type: ignore[untyped-decorator]
def column_kernel(  # type: ignore[no-untyped-def]
    q, k, mask, lse, out, sqb, sqh, sqr, sqd, skb, skh, skr, skd, smb, smh, smr, smk, heads, repeat, n_rows, n_keys, width, scale, order,
    first, step, MASKED: tl.constexpr, DIAGONAL: tl.constexpr, ORDER: tl.constexpr, FLOOR: tl.constexpr, OWN: tl.constexpr,
    WALK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    start, which, image, head = place_of(n_keys, heads, OWN)
    key = start + tl.arange(0, OWN)
    # keys stand in the rows of a tile, so that a sum over queries stays within a warp
    keys = load_tile(k + image * skb + (head // repeat) * skh, start, n_keys, skr, skd, width, OWN, WIDTH)
    queries = q + image * sqb + head * sqh
    hidden = mask + image * smb + head * smh
    top = tl.full([OWN], FLOOR, tl.float32)
    total = tl.zeros([OWN], tl.float32)
    for at in range(0, n_rows, WALK):
        row = at + tl.arange(0, WALK)
        block = load_tile(queries, at, n_rows, sqr, sqd, width, WALK, WIDTH)
        logits = tile(keys, block, key, row, n_keys, n_rows, scale, hidden, smk, smr, MASKED, FLOOR)
        norm = tl.load(lse + which * n_rows + row, mask=row < n_rows, other=float("inf"))
        logits = logits - (norm * LOG2_E)[None, :]
        if not DIAGONAL:
            logits = tl.where(key[:, None] == (first + step * row)[None, :], float("-inf"), logits)
        if ORDER > 0:
            total += tl.sum(tl.exp2(ORDER * logits), 1)
        else:
            if ORDER == 0:
                logits = logits * order
            higher = tl.maximum(top, tl.max(logits, 1))
            if ORDER == 0:
                total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
            top = higher
    found = total
    if ORDER == 2:
        found = tl.sqrt(total)
    if ORDER == 0:
        found = tl.exp2((top + tl.log2(total)) / order)
    if ORDER == -1:
        found = tl.exp2(top)
    tl.store(out + which * n_keys + key, found, mask=key < n_keys)


def tiles(dtype: torch.dtype, width: int) -> dict[str, int]:
    """Sizes of a tile and warps that hold it in registers, for heads up to `width` wide: none spills on compute capability 8.0 and 9.0."""
    if dtype == torch.float32:
        return {"OWN": 64, "WALK": 32, "WIDTH": width, "num_warps": 8}
    return {"OWN": 128, "WALK": 64, "WIDTH": width, "num_warps": 4 if width <= 64 else 8}


def arguments(rows: Rows) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
    """What both kernels are given: the tensors; strides and sizes; constants. A mask becomes numbers to add, where it is not yet."""
    heads, total, width = rows.q.shape[1:]
    mask = rows.mask
    if mask is not None and mask.dtype == torch.bool:
        mask = additive(mask)
    strides = (0, 0, 0, 0) if mask is None else mask.stride()
    sizes = (heads, heads // rows.k.shape[1], total, rows.k.shape[2], width, rows.scale)
    constants = {
        "MASKED": mask is not None,
        "FLOOR": FLOOR,
        **tiles(rows.q.dtype, max(16, triton.next_power_of_2(width))),
    }
    tensors = (rows.q, rows.k, rows.q if mask is None else mask)
    return tensors, (*rows.q.stride(), *rows.k.stride(), *strides, *sizes), constants


def additive(mask: Tensor) -> Tensor:
    """0 where a bool mask is True, FLOOR elsewhere; expanded dimensions stay expanded."""
    shape = mask.shape
    for place, stride in enumerate(mask.stride()):
        if stride == 0:
            mask = mask.narrow(place, 0, 1)
    return torch.where(mask, 0.0, FLOOR).expand(shape)


def launch(kernel: Any, out: Tensor, *given: Any, **constants: Any) -> None:
    """One program for each block of rows or columns of out [B, H, rows or columns], on its device."""
    grid = (triton.cdiv(out.shape[2], constants["OWN"]) * out.shape[0] * out.shape[1],)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        kernel[grid](*given, **constants)


def row_values(rows: Rows, order: float | None) -> Tensor:
    """Renyi entropy of every row, or its lse for order None; +inf (lse: -inf) for a row that does not count. -> [B, H, R] float32"""
    batch, heads, total, _ = rows.q.shape
    out = torch.empty(batch, heads, total, dtype=torch.float32, device=rows.q.device)
    what = LSE if order is None else SHANNON if order == 1 else MINIMUM if math.isinf(order) else RENYI
    tensors, numbers, constants = arguments(rows)
    launch(row_kernel, out, *tensors, out, *numbers, order if what == RENYI else 1.0, WHAT=what, **constants)
    if rows.alive is None:
        return out
    return out.masked_fill_(~rows.alive.unsqueeze(1), -math.inf if order is None else math.inf)


def columns(rows: Rows, order: float, diagonal: bool) -> Tensor:
    """p-norms of the columns. -> [B, H, K] float32"""
    batch, heads, _, _ = rows.q.shape
    keys = rows.k.shape[2]
    lse = row_values(rows, None)
    lse = lse.masked_fill_(lse == -math.inf, math.inf)
    out = torch.empty(batch, heads, keys, dtype=torch.float32, device=rows.q.device)
    kind = int(order) if order in (1, 2) else INFINITE if math.isinf(order) else ANY
    tensors, numbers, constants = arguments(rows)
    asked = (order if kind == ANY else 1.0, rows.first, rows.step)
    launch(column_kernel, out, *tensors, lse, out, *numbers, *asked, DIAGONAL=diagonal, ORDER=kind, **constants)
    return out
