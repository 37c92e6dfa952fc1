"""Col-Ln and its rescue against float64 numpy of the formulas, and by hand."""

import itertools

import pytest
import torch

import sparsight
from sparsight.ops import attention_torch, score

HEADS = {"meanhead": "mean", "joint": "joint", "avgattn": "average"}


@pytest.mark.parametrize("heads", HEADS)
def test_scores(golden, heads):
    d = golden("vit/spec_colln_entropy_N50_s0")
    for order, rows in itertools.product((1, 2, 3, 4, 5, 6, 8, 10), ("patch", "all")):
        recipe = f"col_ln:keep=0.5,order={order},heads={HEADS[heads]},rows={'patches' if rows == 'patch' else 'all'}"
        out = sparsight.reduce(recipe, x=torch.randn(2, 49, 3), attn=d["attn"])
        expected = d[f"colln_n{order}_{rows}_{heads}"].double()
        assert torch.allclose(out.score.double(), expected, rtol=1e-5), recipe


@pytest.mark.parametrize("order", [1, 2, 4, 10])
def test_without_diagonal(golden, order):
    d = golden("vit/spec_colln_entropy_N50_s0")
    out = sparsight.reduce(f"col_ln:keep=0.5,order={order},diagonal=false", x=torch.randn(2, 49, 3), attn=d["attn"])
    assert torch.allclose(out.score.double(), d[f"colln_n{order}_patch_nodiag_meanhead"].double(), rtol=1e-5)


def test_infinite_order_is_the_largest_attention_received():
    q, k = torch.randn(2, 3, 11, 8, dtype=torch.float64), torch.randn(2, 3, 11, 8, dtype=torch.float64)
    matrix = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1)[:, :, 1:, 1:]
    out = sparsight.reduce("col_ln:keep=0.5,order=inf", x=torch.randn(2, 10, 4), q=q, k=k)
    assert torch.allclose(out.score, matrix.amax(dim=2).mean(dim=1))


def test_pieces_do_not_change_the_score(monkeypatch):
    q, k = torch.randn(3, 2, 20, 8, dtype=torch.float64), torch.randn(3, 2, 20, 8, dtype=torch.float64)
    whole = [score.column_norm(q, k, 1, 0.3, order=order, diagonal=False) for order in (2.0, 3.0, float("inf"))]
    for piece in (1, 100, 1000):
        monkeypatch.setattr(attention_torch, "PIECE", piece)
        again = [score.column_norm(q, k, 1, 0.3, order=order, diagonal=False) for order in (2.0, 3.0, float("inf"))]
        assert all(torch.allclose(a, b) for a, b in zip(whole, again, strict=True))


def scores(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    attn = torch.rand(2, 3, n + 1, n + 1, generator=generator, dtype=torch.float64).pow(4)
    return torch.randn(2, n, 4, dtype=torch.float64), attn / attn.sum(-1, keepdim=True)


@pytest.mark.parametrize("budget", ["kept", "removed"])
def test_rescue_by_hand(budget):
    """Slots for Col-Ln: round(0.8 * 6) = 5 of the kept, or round(0.8 * 14) = 11, at most 6, of the removed."""
    x, attn = scores(20)
    out = sparsight.reduce(f"col_ln_rescue:tokens=6,rescue=0.8,budget={budget}", x=x, attn=attn)
    cls = attn[:, :, 0, 1:].mean(1)
    norm = attn[:, :, 1:, 1:].square().sum(2).sqrt().mean(1)
    for image in range(2):
        slots = 5 if budget == "kept" else 6
        first = cls[image].argsort(descending=True)[: 6 - slots].tolist()
        rest = [i for i in norm[image].argsort(descending=True).tolist() if i not in first][:slots]
        assert sorted(first + rest) == out.plan.keep[image].tolist()


def test_rescue_zero_is_class_attention_and_one_is_col_ln():
    x, attn = scores(30)
    for rescue, same in ((0, "class_attention"), (1, "col_ln")):
        a = sparsight.reduce(f"col_ln_rescue:keep=0.4,rescue={rescue}", x=x, attn=attn)
        b = sparsight.reduce(f"{same}:keep=0.4", x=x, attn=attn)
        assert torch.equal(a.plan.keep, b.plan.keep)
