"""Attention statistics in torch: pieces of the matrix as plain operations (gradients, compile, export), or one buffer used again.

Both make a block of query rows against all keys, so that a row's normaliser is known before its columns are summed, and throw it away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

PIECE, LEAST = 1 << 19, 64
"""Matrix elements per piece on a CPU, 2 MiB of float32. The buffer that is used again has twice as many, and rows at least LEAST."""

CHUNK = 1 << 24
"""Matrix elements per image and piece elsewhere and in compiled graphs, whose pieces are unrolled."""

FLOOR = -1e30
"""Logit of a key that must not be looked at: finite, so that 0 * FLOOR is 0."""

SAFE = 80.0
"""exp(SAFE) and exp(-SAFE) are normal float32 numbers."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Query rows of a softmax: q [B, H, R, D], k [B, G, K, D], H a multiple of G; logits are scale * q . k + mask.

    mask   expands to [B, H, R, K]: True or 0 where a query may look, or what is added to the logits. alive [B, R]: rows that count.
    first, step   row i is position first + i * step of the sequence that the keys are.
    """

    q: Tensor
    k: Tensor
    scale: float
    mask: Tensor | None = None
    alive: Tensor | None = None
    first: int = 0
    step: int = 1

    def full_keys(self) -> Rows:
        """With a key head for every query head."""
        repeat = self.q.shape[1] // self.k.shape[1]
        return self if repeat == 1 else replace(self, k=self.k.repeat_interleave(repeat, dim=1))

    def own(self, start: int, rows: int) -> Tensor:
        """Key of the same position for each of `rows` rows from row `start` on."""
        return self.first + self.step * torch.arange(start, start + rows, device=self.q.device)


def pieces(rows: Rows) -> Iterator[tuple[int, slice, Tensor]]:
    """Logits in pieces [b, H, r, K]: (first image, rows, logits), images outside, rows inside."""
    batch, heads, total, _ = rows.q.shape
    size = heads * rows.k.shape[2]
    eager = rows.q.device.type == "cpu" and not torch.compiler.is_compiling()
    images = max(1, PIECE // max(1, size * total)) if eager else batch
    step = total if eager and images > 1 else max(1, (PIECE if eager else CHUNK) // max(1, size))
    q, keys = rows.q * rows.scale, rows.k.transpose(-2, -1)
    for image in range(0, batch, images) if eager else (0,):
        some = slice(image, image + images) if eager else slice(None)
        for start in range(0, total, step):
            here = slice(start, min(total, start + step))
            logits = q[some, :, here] @ keys[some]
            yield image, here, logits if rows.mask is None else masked(logits, rows.mask[some, :, here])


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, FLOOR) if mask.dtype == torch.bool else (logits + mask).clamp(min=FLOOR)


def counted(rows: Rows, image: int, here: slice, logits: Tensor) -> Tensor | None:
    """Which rows of a piece count: those that are alive and may look at something. [b, H, r, 1]"""
    seeing = None if rows.mask is None else logits.detach().amax(-1, keepdim=True) > FLOOR / 2
    if rows.alive is None:
        return seeing
    alive = rows.alive[image : image + logits.shape[0], None, here, None]
    return alive if seeing is None else alive & seeing


def columns(rows: Rows, order: float, diagonal: bool, average: bool) -> Tensor:
    """p-norms of the columns, [B, H, K], or [B, 1, K] of the matrix averaged over heads."""
    rows = rows.full_keys()
    done: dict[int, Tensor] = {}
    for image, here, logits in pieces(rows):
        part = column_part(rows, image, here, logits, order, diagonal, average)
        done[image] = joined(done[image], part, order) if image in done else part
    total = torch.cat(list(done.values()))
    return total if math.isinf(order) else total.pow(1 / order) if order in (1, 2) else (total / order).exp()


def column_part(rows: Rows, image: int, here: slice, logits: Tensor, order: float, diagonal: bool, average: bool) -> Tensor:
    """Sum of powers down the columns of a piece; its logarithm for orders other than 1 and 2, the largest for infinity."""
    matrix = logits.softmax(-1)
    counts = counted(rows, image, here, logits)
    if counts is not None:
        matrix = matrix.masked_fill(~counts, 0)
    if not diagonal:
        key = torch.arange(logits.shape[-1], device=logits.device)
        matrix = matrix.masked_fill(rows.own(here.start, logits.shape[-2]).unsqueeze(-1) == key, 0)
    if average:
        matrix = matrix.mean(dim=1, keepdim=True)
    if math.isinf(order):
        return matrix.amax(dim=-2)
    if order in (1, 2):
        return (matrix.square() if order == 2 else matrix).sum(dim=-2)
    log = matrix.clamp(min=torch.finfo(matrix.dtype).tiny).log().masked_fill(matrix == 0, -math.inf)
    return (order * log).logsumexp(dim=-2)


def joined(a: Tensor, b: Tensor, order: float) -> Tensor:
    """The results of two pieces as one."""
    return torch.maximum(a, b) if math.isinf(order) else a + b if order in (1, 2) else torch.logaddexp(a, b)


def entropies(rows: Rows, order: float) -> Tensor:
    """Renyi entropy of every row over the keys, nats; infinite for a row that does not count. -> [B, H, R]"""
    rows = rows.full_keys()
    parts: dict[int, list[Tensor]] = {}
    for image, here, logits in pieces(rows):
        found = entropy(logits, order)
        counts = counted(rows, image, here, logits)
        parts.setdefault(image, []).append(found if counts is None else found.masked_fill(~counts[..., 0], math.inf))
    return torch.cat([torch.cat(some, dim=-1) for some in parts.values()])


def entropy(logits: Tensor, order: float) -> Tensor:
    if order == 1:
        return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    if order == 2:
        return -logits.softmax(-1).square().sum(-1).log()
    if math.isinf(order):
        return logits.logsumexp(-1) - logits.amax(-1)
    return ((order * logits).logsumexp(-1) - order * logits.logsumexp(-1)) / (1 - order)


def normalisers(rows: Rows) -> Tensor:
    """log of the sum of exp(logits) of every row; -inf for a row that does not count. -> [B, H, R]"""
    rows = rows.full_keys()
    parts: dict[int, list[Tensor]] = {}
    for image, here, logits in pieces(rows):
        counts = counted(rows, image, here, logits)
        found = logits.logsumexp(-1)
        parts.setdefault(image, []).append(found if counts is None else found.masked_fill(~counts[..., 0], -math.inf))
    return torch.cat([torch.cat(some, dim=-1) for some in parts.values()])


class Block(NamedTuple):
    """Logits [h, r, K] of some heads of one image, less `shift` [h, r, 1] per row (None: 0), in a buffer that the next block takes."""

    image: int
    heads: slice
    rows: slice
    logits: Tensor
    shift: Tensor | None


def small(rows: Rows) -> bool:
    """Whether four images fit in a piece: then a buffer for each image costs more calls than it saves."""
    return 4 * rows.q.shape[1] * rows.q.shape[2] * rows.k.shape[2] <= PIECE


def blocks(rows: Rows, power: float, first: int = 0) -> Iterator[Block]:
    """Logits block by block, ready for exp(power * logits): less the row's maximum over the keys from `first` on, unless |q| |k| says
    that it can stay."""
    batch, heads, total, _ = rows.q.shape
    keys = rows.k.shape[2]
    repeat = heads // rows.k.shape[1]
    step = min(total, max(LEAST, 2 * PIECE // keys))
    group = max(1, min(heads, 2 * PIECE // (keys * total)))
    buffer = torch.empty(group * step * keys, dtype=rows.q.dtype, device=rows.q.device)
    for image in range(batch):
        for head in range(0, heads, group):
            some = slice(head, min(heads, head + group))
            q = rows.q[image, some]
            k = rows.k[image, some] if repeat == 1 else rows.k[image, torch.arange(some.start, some.stop) // repeat]
            safe = rows.mask is None and fits(q, k, rows.scale, power)
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
    """As `columns` without average, in one buffer: no gradients, in eager mode on a CPU. -> [B, H, K]

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
    """As `entropies`, or as `normalisers` for order None, in one buffer (two for some orders). -> [B, H, R]"""
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
