"""Attention statistics in torch, streamed through two buffers that every block of query rows uses again: without gradients, on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import attention_torch as plain
from .attention_torch import FLOOR, Rows

LEAST = 64
"""Rows that a buffer has at least; otherwise it is as large as two pieces."""

SAFE = 80.0
"""exp(SAFE) and exp(-SAFE) are normal float32 numbers."""

MANY = 16
"""From so many keys per channel on, finding out that exponentials need no shift costs less than the shift."""

DEEP, DEEP_SQUARED = -99.0, -59.0
"""Logits this far below their row's largest are raised to it, for their exponentials and for the squares of those: numbers too small for
float32 to hold exactly, which nothing notices, take several times as long."""

TO_BITS, FROM_BITS = 1 / math.log(2), math.log(2)
"""Logits are logarithms to base 2: torch leaves `exp` to a library that takes three times as long as `exp2` on some processors."""


class Block(NamedTuple):
    """Logits [n, r, K], to base 2, of some images' heads, n in all, in a buffer that the next block takes, and a second buffer like it.

    images, heads, rows: which these are; only: they are all there is. bounded: neither exponentials of the logits nor sums of them can
    overflow or vanish. masked: some keys may have to stay at 0.
    """

    images: slice
    heads: slice
    rows: slice
    only: bool
    logits: Tensor
    spare: Tensor
    bounded: bool
    masked: bool

    def of(self, x: Tensor) -> Tensor:
        """Select this block's heads from x [B, H, ...]: [n, ...]; a view for one image or contiguous x."""
        return x[self.images, self.heads].flatten(0, 1)

    def place(self, x: Tensor) -> Tensor:
        """View of this block's rows in x [B, H, R, ...]."""
        return x[self.images, self.heads, self.rows]

    def put(self, found: Tensor, x: Tensor) -> Tensor:
        """Write found [n, r] to its place in x [B, H, R]."""
        if self.only:
            return found.view(x.shape)
        place = self.place(x)
        place.copy_(found.view(place.shape))
        return x

    def shift(self, least: float = DEEP) -> Tensor | None:
        """Subtract the row maximum [n, r, 1] in place and clamp at `least`; None, unchanged, if the block is bounded."""
        if self.bounded:
            return None
        top = self.logits.amax(dim=-1, keepdim=True)
        self.logits.sub_(top)
        if not self.masked:
            self.logits.clamp_(min=least)
        return top

    def exponentials(self, spare: bool = False) -> Tensor:
        """exp2 of the logits [n, r, K], in place or into the spare buffer."""
        return torch.exp2(self.logits, out=self.spare if spare else self.logits)

    def column_weights(self, order: float) -> tuple[Tensor, Tensor]:
        """Unnormalised softmax weights and the reciprocal row sums [n, r]."""
        self.shift(deep(order))
        weight = self.exponentials()
        return weight, weight.sum(dim=-1).reciprocal_()

    def add_columns(self, weight: Tensor, normal: Tensor, order: float, total: Tensor, spare: bool = False) -> Tensor:
        """Add the (squared) attention of some rows, weight [n, r, K] * normal [n, r], to total [B, H, K]. Squares stand in the weight's place or in
        the spare buffer."""
        if order == 2:
            normal, weight = normal.square(), torch.square(weight, out=self.spare[:, : weight.shape[1]] if spare else weight)
        if self.only:
            return torch.bmm(normal.unsqueeze(1), weight).view(total.shape)
        self.of(total).unsqueeze(1).baddbmm_(normal.unsqueeze(1), weight)
        return total


def deep(order: float) -> float:
    """Lower clamp of logits whose exponentials, to the power of `order`, are summed."""
    return DEEP_SQUARED if order == 2 else DEEP / min(1.0, order)


def blocks(rows: Rows, power: float) -> Iterator[Block]:
    """Iterate over blocks of base-2 logits; `bounded` says that sums of exp(logits) and exp(power * logits) are safe without a shift."""
    rows = rows.full_keys()
    batch, heads, total, depth = rows.q.shape
    keys, room = rows.k.shape[2], 2 * plain.PIECE
    step = even(total, max(LEAST, room // keys))
    threads, fitting = torch.get_num_threads(), room // (keys * total)
    if batch > 1:  # larger buffers make the C library ask the system for fresh memory in every forward
        fitting = min(fitting, max(threads, plain.PIECE // (keys * total)))
    group = heads_at_once(heads, fitting, threads)
    several = max(1, min(batch, plain.PIECE // (keys * total * heads)))
    # one tensor: after two of the same size the C library gives the memory back, and asks for it again in the next call
    buffers = rows.q.new_empty(2, several * group * step * keys)
    many = rows.mask is None and keys > MANY * depth
    for image in range(0, batch, several):
        for head in range(0, heads, group):
            images, some = slice(image, image + several), slice(head, head + group)
            q, k = (x[images, some].flatten(0, 1) for x in (rows.q, rows.k))
            bounded = many and fits(q, k, rows.scale, power)
            for start in range(0, total, step):
                here = slice(start, min(total, start + step))
                logits, spare = (x[: q.shape[0] * (here.stop - start) * keys].view(q.shape[0], -1, keys) for x in buffers)
                multiply(q[:, here], k, rows.scale * TO_BITS, logits)
                if rows.mask is not None:
                    hide(logits, rows.mask[images, some, here].flatten(0, 1))
                only = logits.numel() == batch * heads * total * keys
                yield Block(images, some, here, only, logits, spare, bounded, rows.mask is not None)


def at_once(heads: int, rows: int, keys: int) -> bool:
    """Whether the whole matrix of one image fits in one block."""
    return heads * rows * keys <= 2 * plain.PIECE


def even(total: int, most: int) -> int:
    """Split `total` into near-equal parts of at most `most`; return the part size."""
    return math.ceil(total / math.ceil(total / max(1, min(total, most))))


def heads_at_once(heads: int, fitting: int, threads: int) -> int:
    """Heads per block: all if they fit, else equal groups that are a multiple of the thread count."""
    group = even(heads, fitting)
    if group == heads or group < threads:
        return group
    more = math.ceil(group / threads) * threads
    return more if more <= fitting else group - group % threads


def fits(q: Tensor, k: Tensor, scale: float, power: float) -> bool:
    """Whether sums of exp(power * logits) over all keys can neither overflow nor vanish, by Cauchy and Schwarz."""
    bound = math.prod(float(torch.linalg.vector_norm(x, dim=-1).amax()) for x in (q, k)) * abs(scale)
    return bool(power * (bound + math.log(k.shape[-2])) <= SAFE)


def multiply(q: Tensor, k: Tensor, scale: float, out: Tensor) -> None:
    """scale * q k^T into out. q [n, r, D], k [n, K, D], out [n, r, K]"""
    if out.shape[0] == 1:
        torch.addmm(out[0], q[0], k[0].t(), beta=0, alpha=scale, out=out[0])
    else:
        torch.baddbmm(out, q, k.transpose(1, 2), beta=0, alpha=scale, out=out)


def hide(logits: Tensor, mask: Tensor) -> None:
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, FLOOR)
    else:
        logits.add_(mask, alpha=TO_BITS).clamp_(min=FLOOR)


def dead_rows(rows: Rows, block: Block) -> Tensor | None:
    """Mask [n, r] of padding rows and fully masked rows; None if there are none."""
    blind = None if rows.mask is None else block.logits.amax(dim=-1) <= FLOOR / 2
    if rows.alive is None:
        return blind
    dead = ~block.of(rows.alive.unsqueeze(1).expand(-1, rows.q.shape[1], -1))[:, block.rows]
    return dead if blind is None else dead | blind


def columns(rows: Rows, order: float, diagonal: bool) -> Tensor:
    """As `attention_torch.columns`, in two buffers: no gradients, in eager mode on a CPU. -> [B, H, K]

    Orders 1 and 2 are a product of a row of normalisers with powers of the weights.
    """
    simple = order in (1, 2)
    total = rows.q.new_full((*rows.q.shape[:2], rows.k.shape[2]), 0.0 if simple else -math.inf)
    for block in blocks(rows, order if simple else 1.0):
        dead = dead_rows(rows, block)
        if simple:
            weight, normal = block.column_weights(order)
            put_own(rows, block, weight, diagonal, 0.0)
            if dead is not None:
                normal.masked_fill_(dead, 0)
            total = block.add_columns(weight, normal, order, total)
            continue
        logits, here_total = block.logits.mul_(FROM_BITS), block.of(total)
        lse = logits.logsumexp(dim=-1)
        logits.sub_((lse if dead is None else lse.masked_fill_(dead, math.inf)).unsqueeze(-1))
        put_own(rows, block, logits, diagonal, -math.inf)
        if math.isinf(order):
            torch.maximum(here_total, logits.amax(dim=-2), out=here_total)
        else:
            torch.logaddexp(here_total, logits.mul_(order).logsumexp(dim=-2), out=here_total)
    return root(total, order) if simple else (total if math.isinf(order) else total.div_(order)).exp_()


def root(x: Tensor, order: float) -> Tensor:
    """x to the power 1 or 1/2, in place."""
    return x.sqrt_() if order == 2 else x


def put_own(rows: Rows, block: Block, matrix: Tensor, diagonal: bool, value: float) -> None:
    """Overwrite the diagonal unless it counts."""
    if not diagonal:
        count = matrix.shape[-2]
        matrix[:, torch.arange(count), rows.own(block.rows.start, count)] = value


def row_values(rows: Rows, order: float | None) -> Tensor:
    """As `attention_torch.row_values`, in two buffers. -> [B, H, R]"""
    out = rows.q.new_empty(rows.q.shape[:3])
    power = 1.0 if order is None or math.isinf(order) else max(1.0, order)
    for block in blocks(rows, power):
        dead = dead_rows(rows, block)
        found = values(block, order)
        out = block.put(found if dead is None else found.masked_fill_(dead, -math.inf if order is None else math.inf), out)
    return out


def values(block: Block, order: float | None) -> Tensor:
    """Compute each row's entropy, or its log-sum-exp for order None; overwrites the logits. -> [n, r]"""
    top = block.shift(deep(order or 1.0))
    weight = block.exponentials(spare=order not in (None, 2))
    total = weight.sum(dim=-1)
    if order is None:
        return total.log_() if top is None else total.log_().add_(top.squeeze(-1), alpha=FROM_BITS)
    if order in (1, 2):
        return entropy(block.logits, weight, total, order)
    if math.isinf(order):
        return total.log_().sub_(block.logits.amax(dim=-1), alpha=FROM_BITS)
    powers = torch.exp2(block.logits.mul_(order), out=weight).sum(dim=-1)
    return (powers.log_() - total.log_().mul_(order)) / (1 - order)


def entropy(logits: Tensor, weight: Tensor, total: Tensor, order: float, first: int = 0) -> Tensor:
    """Entropy of order 1 or 2 of rows of exponentials from key `first` on: weight [n, r, K], their sums total [n, r]. Uses the logits up."""
    if order == 2:
        return total.div(torch.linalg.vector_norm(weight[..., first:], dim=-1)).log_().mul_(2)
    return total.log().addcdiv_(logits.mul_(weight)[..., first:].sum(dim=-1), total, value=-FROM_BITS)
