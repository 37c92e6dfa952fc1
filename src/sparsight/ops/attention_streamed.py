"""Attention statistics in torch, streamed through one buffer that every block of query rows uses again: without gradients, on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import attention_torch as plain
from .attention_torch import FLOOR, Rows

LEAST = 64
"""Rows that the buffer has at least; otherwise it is as large as two pieces."""

SAFE = 80.0
"""exp(SAFE) and exp(-SAFE) are normal float32 numbers."""

FEW = 8
"""Up to so many keys per channel, taking the maximum off costs no more than finding out that it could stay."""


class Block(NamedTuple):
    """Logits [h, r, K] of some heads of one image, less `shift` [h, r, 1] per row (None: 0), in a buffer that the next block takes."""

    image: int
    heads: slice
    rows: slice
    logits: Tensor
    shift: Tensor | None


def small(rows: Rows) -> bool:
    """Whether four images fit in a piece: then a buffer for each image costs more calls than it saves."""
    return 4 * rows.q.shape[1] * rows.q.shape[2] * rows.k.shape[2] <= plain.PIECE


def blocks(rows: Rows, power: float, first: int = 0) -> Iterator[Block]:
    """Logits block by block, ready for exp(power * logits): less the row's maximum over the keys from `first` on, unless keys are many
    and |q| |k| says that it can stay."""
    batch, heads, total, _ = rows.q.shape
    keys = rows.k.shape[2]
    repeat = heads // rows.k.shape[1]
    step = min(total, max(LEAST, 2 * plain.PIECE // keys))
    group = max(1, min(heads, 2 * plain.PIECE // (keys * total)))
    buffer = torch.empty(group * step * keys, dtype=rows.q.dtype, device=rows.q.device)
    bounded = rows.mask is None and keys > FEW * rows.q.shape[3]
    for image in range(batch):
        for head in range(0, heads, group):
            some = slice(head, min(heads, head + group))
            q = rows.q[image, some]
            k = rows.k[image, some] if repeat == 1 else rows.k[image, torch.arange(some.start, some.stop) // repeat]
            safe = bounded and fits(q, k, rows.scale, power)
            for start in range(0, total, step):
                here = slice(start, min(total, start + step))
                logits = multiply(q[:, here], k, rows.scale, buffer)
                if rows.mask is not None:
                    hide(logits, rows.mask[image, some, here])
                yield Block(image, some, here, logits, None if safe else shift(logits, rows.mask is not None, first, power))


def fits(q: Tensor, k: Tensor, scale: float, power: float) -> bool:
    """Whether sums of exp(power * logits) over all keys can neither overflow nor vanish, by Cauchy and Schwarz."""
    bound = math.prod(float(torch.linalg.vector_norm(x, dim=-1).amax()) for x in (q, k)) * abs(scale)
    return bool(power * (bound + math.log(k.shape[-2])) <= SAFE)


def multiply(q: Tensor, k: Tensor, scale: float, buffer: Tensor) -> Tensor:
    """scale * q k^T in the buffer. q [h, r, D], k [h, K, D] -> [h, r, K]."""
    heads, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    out = buffer[: heads * rows * keys].view(heads, rows, keys)
    if heads == 1:
        torch.addmm(out[0], q[0], k[0].t(), beta=0, alpha=scale, out=out[0])
        return out
    return torch.baddbmm(out, q, k.transpose(1, 2), beta=0, alpha=scale, out=out)


def hide(logits: Tensor, mask: Tensor) -> None:
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, FLOOR)
    else:
        logits.add_(mask).clamp_(min=FLOOR)


def shift(logits: Tensor, blind: bool, first: int, power: float) -> Tensor:
    """Take the row's maximum from `first` on off; a row that may look at nothing (blind: there can be such) gets weights of 0."""
    top = logits[..., first:].amax(dim=-1, keepdim=True)
    if first:  # the other keys must not overflow either
        top = torch.maximum(top, logits[..., :first].amax(dim=-1, keepdim=True).sub_(SAFE))
    logits.sub_(top)
    if blind:
        logits.masked_fill_(top <= FLOOR / 2, FLOOR)
    else:  # numbers too small for float32 to hold exactly, which nothing notices, take several times as long
        logits.clamp_(min=-SAFE if first else -SAFE / power)
    return top


def column_pass(rows: Rows, order: float, diagonal: bool) -> Tensor:
    """As `attention_torch.columns` without average, in one buffer: no gradients, in eager mode on a CPU. -> [B, H, K]

    Orders 1 and 2 sum exp(logits)^p times the row's normaliser^-p, which is a matrix-vector product, instead of making the softmax.
    """
    batch, heads, keys = rows.q.shape[0], rows.q.shape[1], rows.k.shape[2]
    simple = order in (1, 2)
    total = rows.q.new_full((batch, heads, 1, keys), 0.0 if simple else -math.inf)
    for image, some, here, logits, _ in blocks(rows, order if simple else 1.0):
        alive = None if rows.alive is None else rows.alive[image, here]
        here_total = total[image, some]
        if simple:
            weight = reciprocal(logits.exp_().sum(dim=-1), alive)
            put_own(rows, here, logits, diagonal, 0.0)
            here_total.baddbmm_(raised(weight, order).unsqueeze(1), raised(logits, order))
            continue
        lse = logits.logsumexp(dim=-1)
        dead = lse < FLOOR / 2 if alive is None else (lse < FLOOR / 2) | ~alive
        logits.sub_(lse.masked_fill_(dead, math.inf).unsqueeze(-1))
        put_own(rows, here, logits, diagonal, -math.inf)
        if math.isinf(order):
            torch.maximum(here_total, logits.amax(dim=-2, keepdim=True), out=here_total)
        else:
            torch.logaddexp(here_total, logits.mul_(order).logsumexp(dim=-2, keepdim=True), out=here_total)
    total = total.squeeze(2)
    return total.pow_(1 / order) if simple else (total if math.isinf(order) else total.div_(order)).exp_()


def raised(x: Tensor, order: float) -> Tensor:
    """x to the power 1 or 2, in place."""
    return x.square_() if order == 2 else x


def reciprocal(total: Tensor, alive: Tensor | None) -> Tensor:
    """1 / total [h, r], and 0 for rows that do not count."""
    dead = total == 0 if alive is None else (total == 0) | ~alive
    return total.masked_fill_(dead, math.inf).reciprocal_()


def put_own(rows: Rows, here: slice, matrix: Tensor, diagonal: bool, value: float) -> None:
    """Unless the diagonal counts, put the value in its places."""
    if not diagonal:
        count = matrix.shape[-2]
        matrix[:, torch.arange(count), rows.own(here.start, count)] = value


def row_pass(rows: Rows, order: float | None) -> Tensor:
    """As `attention_torch.entropies`, or as its `normalisers` for order None, in one buffer (two for some orders). -> [B, H, R]"""
    out = rows.q.new_empty(rows.q.shape[:3])
    power = 1.0 if order is None or math.isinf(order) else max(1.0, order)
    for image, some, here, logits, top in blocks(rows, power):
        found, total = row_values(logits, top, order)
        dead = total == 0
        if rows.alive is not None:
            dead |= ~rows.alive[image, here]
        out[image, some, here] = found.masked_fill_(dead, -math.inf if order is None else math.inf)
    return out


def row_values(logits: Tensor, top: Tensor | None, order: float | None) -> tuple[Tensor, Tensor]:
    """What is asked of each row, and the sum of exp(logits), which is above 0 for a row that may look at something. Uses logits up."""
    if order is None:
        total = logits.exp_().sum(dim=-1)
        return total.log() if top is None else total.log() + top.squeeze(-1), total
    if order == 2:
        total = logits.exp_().sum(dim=-1)
        return 2 * (total.log() - torch.linalg.vector_norm(logits, dim=-1).log()), total
    if math.isinf(order):
        highest = logits.amax(dim=-1)
        total = logits.exp_().sum(dim=-1)
        return total.log() - highest, total
    weight = logits.exp()
    total = weight.sum(dim=-1)
    if order == 1:
        return total.log() - weight.mul_(logits).sum(dim=-1) / total, total
    return (logits.mul_(order).exp_().sum(dim=-1).log() - order * total.log()) / (1 - order), total
