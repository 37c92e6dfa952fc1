"""Attention statistics in torch as plain operations on pieces of the matrix: for gradients, compile, export and short sequences.

A piece is a block of query rows against all keys, so that a row's normaliser is known before its columns are summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .portable import tracing

PIECE = 1 << 19
"""Matrix elements per piece on a CPU, 2 MiB of float32."""

CHUNK = 1 << 24
"""Matrix elements per image and piece elsewhere and in compiled graphs, whose pieces are unrolled."""

NEAR, FAINT = 0.1, -100.0
"""Orders of entropy this near to 1 are computed by expm1 and log1p; logarithms of probabilities end at FAINT there."""

FLOOR = -1e30
"""Logit of a key that must not be looked at: finite, so that 0 * FLOOR is 0."""


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
        """Repeat key heads so that every query head has its own (grouped queries)."""
        repeat = self.q.shape[1] // self.k.shape[1]
        return self if repeat == 1 else replace(self, k=self.k.repeat_interleave(repeat, dim=1))

    def own(self, start: int, rows: int) -> Tensor:
        """Key index of each query row's own position."""
        return self.first + self.step * torch.arange(start, start + rows, device=self.q.device)


def pieces(rows: Rows) -> Iterator[tuple[int, slice, Tensor]]:
    """Iterate over pieces of logits [b, H, r, K]: (first image, rows, logits)."""
    batch, heads, total, _ = rows.q.shape
    size = heads * rows.k.shape[2]
    eager = rows.q.device.type == "cpu" and not tracing()
    images = max(1, PIECE // max(1, size * total)) if eager else batch
    step = total if eager and images > 1 else max(1, (PIECE if eager else CHUNK) // max(1, size))
    q, keys = rows.q * rows.scale, rows.k.transpose(-2, -1)
    for image in range(0, batch, images) if eager else (0,):
        some = slice(image, image + images) if eager else slice(None)
        for start in range(0, total, step):
            here = slice(start, min(total, start + step))
            logits = q[some, :, here] @ keys[some]
            yield image, here, logits if rows.mask is None else masked(logits, rows.mask[some, :, here])


def products(q: Tensor, k: Tensor) -> Tensor:
    """q k^T of few queries: [B, H, T, K]. Keys whose heads lie between the tokens would be copied for it; on a CPU, where the copy takes
    as long as the product, images go one by one."""
    copied = k.shape[0] > 1 and not k.is_contiguous()
    if not copied or k.device.type != "cpu" or tracing():
        return q @ k.transpose(-2, -1)
    return torch.stack([torch.bmm(queries, keys.transpose(-2, -1)) for queries, keys in zip(q, k, strict=True)])


def exact(x: Tensor) -> Tensor:
    """Cast to float32; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, FLOOR) if mask.dtype == torch.bool else (logits + mask).clamp(min=FLOOR)


def counted(rows: Rows, image: int, here: slice, logits: Tensor) -> Tensor | None:
    """Mask [b, H, r, 1] of rows that are neither padding nor fully masked; None if all count."""
    seeing = None if rows.mask is None else logits.detach().amax(-1, keepdim=True) > FLOOR / 2
    if rows.alive is None:
        return seeing
    alive = rows.alive[image : image + logits.shape[0], None, here, None]
    return alive if seeing is None else alive & seeing


def columns(rows: Rows, order: float, diagonal: bool, average: bool = False) -> Tensor:
    """p-norms of the columns, [B, H, K], or [B, 1, K] of the matrix averaged over heads."""
    rows = rows.full_keys()
    done: dict[int, Tensor] = {}
    for image, here, logits in pieces(rows):
        part = column_part(rows, image, here, logits, order, diagonal, average)
        done[image] = joined(done[image], part, order) if image in done else part
    total = torch.cat(list(done.values()))
    return total if math.isinf(order) else total.pow(1 / order) if order in (1, 2) else (total / order).exp()


def column_part(rows: Rows, image: int, here: slice, logits: Tensor, order: float, diagonal: bool, average: bool) -> Tensor:
    """Reduce a piece over its rows: sum of powers (its log for orders other than 1 and 2), or the maximum for infinity."""
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
    """Combine the results of two pieces."""
    return torch.maximum(a, b) if math.isinf(order) else a + b if order in (1, 2) else torch.logaddexp(a, b)


def row_values(rows: Rows, order: float | None) -> Tensor:
    """Renyi entropy of every row over the keys (nats; inf for a row that does not count), or for order None its log-sum-exp (-inf).
    -> [B, H, R]"""
    rows, none = rows.full_keys(), -math.inf if order is None else math.inf
    parts: dict[int, list[Tensor]] = {}
    for image, here, logits in pieces(rows):
        found = logits.logsumexp(-1) if order is None else entropy(logits, order)
        counts = counted(rows, image, here, logits)
        parts.setdefault(image, []).append(found if counts is None else found.masked_fill(~counts[..., 0], none))
    return torch.cat([torch.cat(some, dim=-1) for some in parts.values()])


def near_one(order: float) -> bool:
    """Whether an order is so near to 1, without being 1, that the definition divides rounding errors by almost nothing."""
    return 0 < abs(order - 1) < NEAR


def entropy(logits: Tensor, order: float) -> Tensor:
    if near_one(order):
        # sum p^order = 1 + sum p (p^(order - 1) - 1), each part of which is exact however small order - 1 is
        log = logits.log_softmax(-1).clamp(min=FAINT)
        return -(log.exp() * torch.expm1((order - 1) * log)).sum(-1).log1p() / (order - 1)
    if order == 1:
        return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    if order == 2:
        return -logits.softmax(-1).square().sum(-1).log()
    if math.isinf(order):
        return logits.logsumexp(-1) - logits.amax(-1)
    return ((order * logits).logsumexp(-1) - order * logits.logsumexp(-1)) / (1 - order)
