"""Triton kernels against the same statistics in float64; run with TRITON_INTERPRET=1 by test_attention.py."""

import math

import torch

from sparsight.ops import attention_torch, attention_triton
from sparsight.ops.attention_torch import Rows

ROWS, KEYS, HEADS = 75, 91, 2
ORDERS = (0.5, 1.0, 2.0, 3.3, math.inf)


def cases():
    """Tiles do not fit: 75 rows, 91 keys, heads of 24; shared key heads; masks; padding; every second row; half precision."""
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, HEADS, ROWS, 24, generator=draw), torch.randn(2, 1, KEYS, 24, generator=draw)
    seen = torch.rand(2, 1, 1, KEYS, generator=draw) > 0.3
    hidden = torch.ones(2, 1, ROWS, 1, dtype=torch.bool)
    hidden[1, :, 3] = False
    alive = torch.ones(2, ROWS, dtype=torch.bool)
    alive[0, 70:] = False
    shape = (2, HEADS, ROWS, KEYS)
    yield Rows(q, k, 0.3, first=1)
    yield Rows(q, k, 0.3, (seen & hidden).expand(shape), first=1)
    yield Rows(
        q[:, :, ::2],
        k,
        0.3,
        torch.randn(1, HEADS, ROWS, KEYS, generator=draw)[:, :, ::2].expand(2, -1, -1, -1),
        alive[:, ::2],
        1,
        2,
    )
    # float16 and not bfloat16, whose bits the interpreter multiplies as integers
    halves = torch.randn(2, 1, HEADS, 139, 24, generator=draw).half()
    yield Rows(halves[0], halves[1], 0.3, first=1)


def exact(rows):
    mask = rows.mask
    if mask is not None and mask.is_floating_point():
        mask = mask.double()
    return Rows(rows.q.double(), rows.k.double(), rows.scale, mask, rows.alive, rows.first, rows.step)


def check(got, want):
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-12)


def compare(rows, order, diagonals):
    check(attention_triton.row_values(rows, order), attention_torch.row_values(exact(rows), order))
    for diagonal in diagonals:
        check(attention_triton.columns(rows, order, diagonal), attention_torch.columns(exact(rows), order, diagonal))


def main() -> None:
    count = 0
    with torch.no_grad():
        for rows in cases():
            check(attention_triton.row_values(rows, None), attention_torch.row_values(exact(rows), None))
            for order in ORDERS:
                compare(rows, order, [order in (0.5, 1.0)])
                count += 1
    print(f"checked {count} cases")


if __name__ == "__main__":
    main()
