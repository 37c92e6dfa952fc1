"""The Triton kernels on a GPU, where there is one; elsewhere test_attention.py interprets them and test_attention_triton.py compiles them."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

from interpret_kernels import ORDERS, cases, check, compare, exact

from sparsight.ops import attention, attention_torch, attention_triton
from sparsight.ops.select import best

DEVICES = [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def on(rows, device):
    mask, alive = (None if x is None else x.to(device) for x in (rows.mask, rows.alive))
    return replace(rows, q=rows.q.to(device), k=rows.k.to(device), mask=mask, alive=alive)


@torch.no_grad()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ORDERS)
def test_against_float64(order, device):
    for case in cases():
        rows = on(case, device)
        check(attention_triton.row_values(rows, None), attention_torch.row_values(exact(rows), None))
        compare(rows, order, [True, False])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [197, 577, 1025])
def test_half_precision_keeps_the_same_tokens(length, dtype):
    """As a float32 computation of the same numbers."""
    rng = torch.Generator("cuda").manual_seed(0)
    q, k = (2 * torch.randn(2, 6, length, 64, generator=rng, device="cuda").to(dtype) for _ in range(2))
    for order in ORDERS:
        for statistic in (attention.column_norm, attention.row_entropy):
            halves = statistic(q, k, 1, 0.125, order)
            floats = statistic(q.float(), k.float(), 1, 0.125, order)
            assert torch.equal(best(halves, length // 2), best(floats, length // 2))


@torch.no_grad()
def test_heads_beyond_the_limit_of_a_grids_second_axis():
    q, k = (torch.randn(2, 40_000, 17, 16, device="cuda") for _ in range(2))
    got = attention.row_entropy(q, k, 1, 0.25, 2.0)
    torch.testing.assert_close(got.double(), attention.row_entropy(q.double(), k.double(), 1, 0.25, 2.0), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("statistic", [attention.column_norm, attention.row_entropy])
def test_memory_of_long_sequences(statistic):
    """At most 5% of the matrix."""
    q, k = (torch.randn(1, 6, 4097, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    statistic(q, k, 1, 0.125, 2.0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    statistic(q, k, 1, 0.125, 2.0)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 0.05 * 4 * 6 * 4097**2
