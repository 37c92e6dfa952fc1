"""A statistic and the attention's output in one pass: both as the float64 softmax has them, and only where that is possible."""

import itertools

import pytest
import torch

from sparsight.ops import attention, attention_streamed, attention_torch
from sparsight.ops.attention_shared import Attended

SCALE = 0.25


def problem(rng, prefix, spread=1.0, sink=0.0, batch=3):
    """q, k, v as views of one packed tensor, as models have them; prefix tokens draw `sink` more attention."""
    packed = torch.randn(batch, 70 + prefix, 3, 4, 16, generator=rng) * spread
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    k[:, :, :prefix] += sink * q.mean(dim=2, keepdim=True)
    return q, k, v


def whole(box):
    """The output of all rows."""
    return box.output(torch.arange(box.v.shape[0] * box.v.shape[2]))


def expected(q, k, v):
    out = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=SCALE)
    return out.transpose(1, 2).flatten(2)


STATISTICS = {
    "col1": lambda q, k, prefix, **box: attention.column_norm(q, k, prefix, SCALE, 1.0, **box),
    "col2": lambda q, k, prefix, **box: attention.column_norm(q, k, prefix, SCALE, 2.0, **box),
    "col2-all-joint": lambda q, k, prefix, **box: attention.column_norm(q, k, prefix, SCALE, 2.0, "joint", "all", **box),
    "shannon": lambda q, k, prefix, **box: attention.row_entropy(q, k, prefix, SCALE, 1.0, **box),
    "renyi": lambda q, k, prefix, **box: attention.row_entropy(q, k, prefix, SCALE, 2.0, **box),
}


@torch.no_grad()
@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("piece", [1 << 11, 1 << 15, 1 << 19], ids=["rows-cut", "heads-together", "images-together"])
def test_both_agree_with_float64(rng, monkeypatch, name, piece):
    """With few and many prefix tokens, of flat and peaked attention, an image alone and a batch."""
    monkeypatch.setattr(attention_torch, "PIECE", piece)
    for prefix, spread, batch in itertools.product((0, 1, 5), (0.5, 3.0), (1, 3)):
        q, k, v = problem(rng, prefix, spread, batch=batch)
        box = Attended(q, k, v, SCALE)
        found = STATISTICS[name](q, k, prefix, attended=box)
        wanted = STATISTICS[name](q.double(), k.double(), prefix)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=float(wanted.abs().max()) * 1e-5)
        torch.testing.assert_close(whole(box).double(), expected(q, k, v), rtol=1e-5, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["shannon", "renyi"])
def test_prefix_tokens_that_take_all_attention(rng, monkeypatch, name):
    """Patches' logits tens to hundreds below those of the prefix: their entropy is still that of a softmax over patches alone."""
    for sink, piece in itertools.product((1.0, 3.0, 5.0, 12.0), (1 << 11, 1 << 15, 1 << 19)):
        monkeypatch.setattr(attention_torch, "PIECE", piece)
        q, k, v = problem(rng, 2, spread=6.0, sink=sink)
        box = Attended(q, k, v, SCALE)
        found = STATISTICS[name](q, k, 2, attended=box)
        wanted = STATISTICS[name](q.double(), k.double(), 2)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(whole(box).double(), expected(q, k, v), rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["shannon", "renyi"])
def test_one_patch_far_below_the_prefix_and_far_above_the_others(name):
    """exp(-30) of a row is one patch's, exp(-75) each other's: among patches there is no doubt, however little they get."""
    q, k = torch.zeros(1, 1, 72, 16), torch.zeros(1, 1, 72, 16)
    q[..., 0] = 1 / SCALE
    k[:, :, 1, 0], k[:, :, 2:, 0] = -30.0, -75.0
    box = Attended(q, k, k, SCALE)
    assert STATISTICS[name](q, k, 1, attended=box).abs().max() < 1e-5
    assert box.softmax is not None


@torch.no_grad()
@pytest.mark.parametrize("name", STATISTICS)
def test_output_of_some_rows(rng, monkeypatch, name):
    """Rows of all images one after the other, in any order; a single image's values are mixed for them alone."""
    for batch, many in itertools.product((1, 3), (False, True)):
        monkeypatch.setattr(attention_streamed, "MANY", 1 if many else 16)
        q, k, v = problem(rng, 2, 0.5, batch=batch)
        box = Attended(q, k, v, SCALE)
        STATISTICS[name](q, k, 2, attended=box)
        assert (box.softmax is not None) == (batch == 1)
        assert (box.whole is None) == (batch == 1)
        if batch == 1:
            assert bool((box.softmax[0].amax(dim=-1) == 1).all()) != many  # each row's largest has come off, or nothing
        rows = torch.stack([image * 72 + torch.randperm(72, generator=rng)[:9] for image in range(batch)])
        wanted = expected(q, k, v).flatten(0, 1)[rows]
        torch.testing.assert_close(box.output(rows.flatten()).double(), wanted, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(whole(box).double(), expected(q, k, v), rtol=1e-5, atol=2e-5)  # and all of them afterwards


@torch.no_grad()
@pytest.mark.parametrize("order", [1.0, 2.0])
@pytest.mark.parametrize(("batch", "piece"), [(1, 1 << 19), (1, 1 << 12), (3, 1 << 19)], ids=["single", "in pieces", "batch"])
def test_class_row_and_columns_of_one_softmax(rng, monkeypatch, batch, piece, order):
    """A single image whose attention is one block makes its logits once for both; others get the same numbers."""
    monkeypatch.setattr(attention_torch, "PIECE", piece)
    products, real = [], attention_streamed.multiply
    monkeypatch.setattr(attention_streamed, "multiply", lambda *given: products.append(given) or real(*given))
    q, k, v = problem(rng, 2, 2.0, batch=batch)
    box = Attended(q, k, v, SCALE)
    row = attention.class_row(q, k, 2, SCALE, attended=box)
    begun = len(products)
    norms = attention.column_norm(q, k, 2, SCALE, order, attended=box)
    assert (begun, len(products) == 1) == ((1, True) if batch == 1 and piece == 1 << 19 else (0, piece == 1 << 19))
    wide = [x.double() for x in (q, k)]
    torch.testing.assert_close(row.double(), attention.class_row(*wide, 2, SCALE), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(norms.double(), attention.column_norm(*wide, 2, SCALE, order), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(whole(box).double(), expected(q, k, v), rtol=1e-5, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "statistic",
    [
        lambda q, k, box: attention.column_norm(q, k, 1, SCALE, 3.0, attended=box),
        lambda q, k, box: attention.column_norm(q, k, 1, SCALE, 2.0, "average", attended=box),
        lambda q, k, box: attention.column_norm(q, k, 1, SCALE, 2.0, diagonal=False, attended=box),
        lambda q, k, box: attention.column_norm(q, k, 1, SCALE, 2.0, stride=2, attended=box),
        lambda q, k, box: attention.column_norm(q, k, 1, 2 * SCALE, 2.0, attended=box),
        lambda q, k, box: attention.column_norm(q.clone(), k, 1, SCALE, 2.0, attended=box),
        lambda q, k, box: attention.row_entropy(q, k, 1, SCALE, 3.0, attended=box),
        lambda q, k, box: attention.row_entropy(q, k, 1, SCALE, 2.0, mask=torch.ones(1, 1, 1, 71) > 0, attended=box),
    ],
    ids=["order", "average", "diagonal", "stride", "scale", "others", "entropy-order", "mask"],
)
def test_other_statistics_leave_the_output_alone(rng, statistic):
    q, k, v = problem(rng, 1)
    box = Attended(q, k, v, SCALE)
    torch.testing.assert_close(statistic(q, k, box), statistic(q, k, None), rtol=0, atol=0)
    assert whole(box) is None


def test_gradients_half_precision_and_other_devices_are_left_out(rng):
    v = torch.randn(1, 2, 3, 4, generator=rng)
    assert not Attended.possible(v)
    with torch.no_grad():
        assert Attended.possible(v)
        assert not Attended.possible(v.bfloat16())
        assert not Attended.possible(v.to("meta"))
