"""Statistics of attention against a plain float64 softmax, on every back end that runs here."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsight import PruneError
from sparsight.ops import attention, attention_streamed, attention_torch

ORDERS = [0.5, 1.0, 2.0, 3.3, 8.0, math.inf]
MASKS = ["none", "padding", "keys", "added"]
LENGTH, PREFIX, SCALE = 70, 1, 0.25


@pytest.fixture(params=["explicit", "streamed", "bounded"])
def backend(request, monkeypatch):
    """Small pieces, so that there are several; explicit in spite of the device, bounds looked for in spite of the few keys."""
    monkeypatch.setattr(attention_torch, "PIECE", 1 << 13)
    if request.param == "explicit":
        monkeypatch.setattr(attention, "backend", lambda work: "explicit")
    if request.param == "bounded":
        monkeypatch.setattr(attention_streamed, "MANY", 0)
    return request.param


def problem(rng, mask="none", groups=4, spread=1.0):
    q = spread * torch.randn(2, 4, LENGTH, 16, generator=rng)
    k = spread * torch.randn(2, groups, LENGTH, 16, generator=rng)
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[1, LENGTH - 9 :] = False
    chosen = {
        "none": {},
        "padding": {"valid": valid},
        "keys": {"mask": torch.rand(2, 1, 1, LENGTH, generator=rng) > 0.2},
        "added": {"mask": torch.randn(1, 4, LENGTH, LENGTH, generator=rng), "valid": valid},
    }[mask]
    return q, k, chosen


def matrix(q, k, first=0, mask=None, valid=None):
    """The softmax matrix in float64, over the keys from `first` on; rows of padding are 0."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.transpose(-2, -1) * SCALE
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None], -math.inf)
    a = logits[..., first:].softmax(-1)
    return a if valid is None else a * valid[:, None, :, None]


def reference_norm(a, order, heads, rows, diagonal):
    a = a[:, :, PREFIX:].clone() if rows == "patches" else a.clone()
    if not diagonal:
        shift = PREFIX if rows == "patches" else 0
        a.diagonal(offset=shift, dim1=-2, dim2=-1).zero_()
    if heads == "average":
        a = a.mean(1, keepdim=True)
    if heads == "joint":
        a = a.flatten(1, 2).unsqueeze(1)
    return torch.linalg.vector_norm(a, order, dim=-2).mean(1)[:, PREFIX:]


def reference_entropy(a, order):
    if order == 1:
        return torch.special.entr(a).sum(-1)
    return -a.amax(-1).log() if math.isinf(order) else a.pow(order).sum(-1).log() / (1 - order)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_column_norms(rng, backend, order):
    cases = (("mean", "patches", True), ("joint", "all", False), ("average", "patches", False))
    for mask, (heads, rows, diagonal) in itertools.product(MASKS, cases):
        q, k, given = problem(rng, mask, groups=2)
        a = matrix(q, k, **given)
        got = attention.column_norm(q, k, PREFIX, SCALE, order, heads, rows, diagonal, **given)
        torch.testing.assert_close(got.double(), reference_norm(a, order, heads, rows, diagonal), rtol=1e-5, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_row_entropies(rng, backend, order):
    for mask in MASKS:
        q, k, given = problem(rng, mask, groups=2)
        got = attention.row_entropy(q, k, PREFIX, SCALE, order, **given)
        want = reference_entropy(matrix(q, k, PREFIX, **given)[:, :, PREFIX:], order).mean(1)
        if "valid" in given:
            want = want.masked_fill(~given["valid"][:, PREFIX:], math.inf)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-12)


@torch.no_grad()
def test_normalisers_and_chosen_rows(rng, backend):
    for spread, mask in itertools.product((1.0, 6.0), MASKS):
        q, k, given = problem(rng, mask, groups=2, spread=spread)
        a = matrix(q, k, **given)
        rows = torch.tensor([0, 5, LENGTH - 12])
        got = attention.query_rows(q, k, SCALE, rows, **given)
        torch.testing.assert_close(got.double(), a[:, :, rows], rtol=1e-4 if spread > 1 else 1e-5, atol=1e-9)
        torch.testing.assert_close(attention.class_row(q, k, PREFIX, SCALE, **given), got[:, :, 0, PREFIX:])
        lse = attention.row_normalisers(q, k, SCALE, **given)
        if not given:
            logits = q.double() @ k.double().repeat_interleave(2, 1).transpose(-2, -1) * SCALE
            torch.testing.assert_close(lse.double(), logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
        if "valid" in given:
            assert torch.equal(lse.isneginf(), ~given["valid"][:, None].expand_as(lse))


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_heads_between_the_tokens(rng, backend, batch):
    """As models make them, with all heads of a token side by side: the same rows, an image of a batch as alone."""
    q, k = (x[:batch].transpose(1, 2).contiguous().transpose(1, 2) for x in problem(rng)[:2])
    rows = torch.tensor([0, 7])
    assert not k.is_contiguous()
    got = attention.query_rows(q, k, SCALE, rows)
    torch.testing.assert_close(got.double(), matrix(q, k)[:, :, rows], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(attention.query_rows(q[-1:], k[-1:], SCALE, rows), got[-1:], rtol=0, atol=1e-7)
    norms = attention.column_norm(q, k, PREFIX, SCALE, 2.0)
    torch.testing.assert_close(norms, attention.column_norm(q.contiguous(), k.contiguous(), PREFIX, SCALE, 2.0))


@torch.no_grad()
def test_logits_that_would_overflow(rng, backend):
    """exp of these logits is no float32 number: the row's maximum has to come off."""
    q, k, _ = problem(rng, spread=12.0)
    for order in ORDERS:
        got = attention.column_norm(q, k, PREFIX, SCALE, order)
        torch.testing.assert_close(got.double(), reference_norm(matrix(q, k), order, "mean", "patches", True), rtol=1e-3, atol=1e-8)
    for order in (*ORDERS, 0.1):
        got = attention.row_entropy(q, k, PREFIX, SCALE, order)
        wanted = reference_entropy(matrix(q, k, PREFIX)[:, :, PREFIX:], order).mean(1)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=3e-5)


@torch.no_grad()
def test_queries_that_see_nothing_count_as_padding(rng, backend):
    q, k, _ = problem(rng)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    mask[:, :, 7] = False
    a = matrix(q, k)
    a[:, :, 7] = 0
    got = attention.column_norm(q, k, PREFIX, SCALE, 2, mask=mask)
    torch.testing.assert_close(got.double(), reference_norm(a, 2, "mean", "patches", True), rtol=1e-5, atol=0)
    assert attention.row_entropy(q, k, PREFIX, SCALE, 2, mask=mask)[:, 7 - PREFIX].isposinf().all()


@torch.no_grad()
def test_column_mean_counts_real_rows_only(rng, backend):
    q, k, given = problem(rng, "padding")
    short = LENGTH - 9
    alone = attention.column_mean(q[1:, :, :short], k[1:, :, :short], PREFIX, SCALE)
    padded = attention.column_mean(q, k, PREFIX, SCALE, **given)[1:]
    torch.testing.assert_close(padded[:, : short - PREFIX], alone)
    assert (padded[:, short - PREFIX :] == 0).all()


@torch.no_grad()
def test_half_precision_keeps_what_float32_keeps(rng, backend):
    q, k, _ = problem(rng)
    q, k = q.bfloat16(), k.bfloat16()
    for work in (attention.column_norm, attention.row_entropy):
        half, single = work(q, k, PREFIX, SCALE, 2), work(q.float(), k.float(), PREFIX, SCALE, 2)
        assert torch.equal(half.topk(20).indices, single.topk(20).indices)


def test_gradients(rng):
    q, k, _ = problem(rng)
    for work in (attention.column_norm, attention.row_entropy):
        x = q[:1, :2, :9].double().requires_grad_()
        y = k[:1, :2, :9].double().requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b, work=work: work(a, b, PREFIX, SCALE, 3.0), (x, y))


@torch.no_grad()
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_every_second_row_is_near(rng, backend, order, diagonal):
    q, k, _ = problem(rng)
    whole = attention.column_norm(q, k, PREFIX, SCALE, order, diagonal=diagonal)
    near = attention.column_norm(q, k, PREFIX, SCALE, order, diagonal=diagonal, stride=2)
    assert torch.corrcoef(torch.stack([whole.flatten(), near.flatten()]))[0, 1] > (0.6 if diagonal else 0.4)
    assert 0.8 < float(near.mean() / whole.mean()) < 1.2 or math.isinf(order)


@torch.no_grad()
def test_a_sample_of_equal_rows_is_enough(backend):
    """Where all queries and keys are alike, every row stands for every other one: only the diagonal's share is estimated."""
    q = torch.ones(1, 2, 41, 8)
    for order in (1.0, 2.0):
        whole = attention.column_norm(q, q, PREFIX, SCALE, order)
        torch.testing.assert_close(attention.column_norm(q, q, PREFIX, SCALE, order, stride=4), whole, rtol=0.03, atol=0)


def test_what_does_not_fit(rng):
    q, k, _ = problem(rng)
    with pytest.raises(PruneError, match="stride=0"):
        attention.column_norm(q, k, PREFIX, SCALE, 2, stride=0)
    with pytest.raises(PruneError, match="4 query heads cannot share 3"):
        attention.row_normalisers(q, k[:, :3], SCALE)
    with pytest.raises(PruneError, match="valid must be bool"):
        attention.row_normalisers(q, k, SCALE, valid=torch.ones(2, LENGTH))
    with pytest.raises(PruneError, match="does not expand"):
        attention.row_normalisers(q, k, SCALE, mask=torch.ones(5, 1, 1, 1))


@pytest.mark.slow
def test_triton_kernels_in_the_interpreter():
    """The kernels are compiled for CUDA alone; Triton's interpreter runs them on CPU tensors, if it is asked before the import."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpret_kernels.py")
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("checked"), done.stdout


def test_heads_at_once():
    """All that fit, in groups of equal size that threads can share."""
    cases = {
        (6, 15, 2): 6, (6, 7, 4): 6, (6, 3, 2): 2, (6, 5, 2): 4, (12, 7, 2): 6, (16, 15, 2): 8, (16, 3, 2): 2, (6, 1, 2): 1,
        (6, 0, 2): 1, (6, 3, 8): 3,
    }  # fmt: skip
    for (heads, fitting, threads), expected in cases.items():
        assert attention_streamed.heads_at_once(heads, fitting, threads) == expected
