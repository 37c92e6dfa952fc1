"""reduce() on raw tensors: derived signals, precision, and bad input."""

import pytest
import torch

import sparsight
from sparsight.errors import PruneError

X = torch.randn(2, 9, 8)
QK = {"q": torch.randn(2, 3, 10, 4), "k": torch.randn(2, 3, 10, 4)}


def test_class_attention_is_derived_from_q_and_k():
    attn = (QK["q"] @ QK["k"].transpose(-1, -2) * 4**-0.5).softmax(-1)
    from_qk = sparsight.reduce("evit:keep=0.5", x=X, **QK)
    for signals in ({"attn": attn}, {"class_attn": attn[:, :, 0, 1:]}, {"class_attn": attn[:, :, 0, 1:].mean(1)}):
        again = sparsight.reduce("evit:keep=0.5", x=X, **signals)
        assert torch.equal(again.plan.keep, from_qk.plan.keep)
        assert torch.allclose(again.x, from_qk.x, atol=1e-6)


@pytest.mark.parametrize("name", ["col_ln", "shannon", "renyi", "col_ln_rescue", "class_attention"])
def test_matrix_stands_in_for_q_and_k(name):
    attn = (QK["q"].double() @ QK["k"].double().transpose(-1, -2) * 4**-0.5).softmax(-1)
    a, b = sparsight.reduce(f"{name}:keep=0.5", x=X, **QK), sparsight.reduce(f"{name}:keep=0.5", x=X, attn=attn)
    assert torch.equal(a.plan.keep, b.plan.keep)
    assert torch.allclose(a.score, b.score.float(), atol=1e-5)


def test_zero_attention_is_no_trouble():
    attn = torch.zeros(1, 1, 10, 10)
    attn[..., 3] = 1
    out = sparsight.reduce("col_ln:tokens=1", x=X[:1], attn=attn)
    assert out.plan.keep.tolist() == [[2]]
    assert out.score.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(dtype):
    half = {name: value.to(dtype) for name, value in QK.items()}
    low = sparsight.reduce("col_ln:keep=0.5", x=X.to(dtype), **half)
    full = sparsight.reduce("col_ln:keep=0.5", x=X, **{name: value.float() for name, value in half.items()})
    assert low.score.dtype == torch.float32
    assert torch.equal(low.score, full.score)
    assert low.x.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sparsight.reduce("col_ln:keep=0.5", x=X, **QK)
    assert torch.equal(cast.score, sparsight.reduce("col_ln:keep=0.5", x=X, **QK).score)


def test_float64_stays():
    out = sparsight.reduce("renyi:keep=0.5", x=X.double(), **{name: value.double() for name, value in QK.items()})
    assert out.score.dtype == out.x.dtype == torch.float64


def test_inputs_are_not_changed():
    before = [X.clone(), QK["q"].clone(), QK["k"].clone()]
    for name in ("evit", "col_ln", "tome:remove=3", "similarity", "col_ln_rescue"):
        sparsight.reduce(name, x=X, **QK)
    assert all(torch.equal(a, b) for a, b in zip(before, [X, QK["q"], QK["k"]], strict=True))


def test_gradients_reach_the_fused_tokens_weights():
    q = QK["q"].clone().requires_grad_()
    out = sparsight.reduce("evit:keep=0.5", x=X, q=q, k=QK["k"])
    out.x[:, -1].sum().backward()
    assert q.grad is not None
    assert q.grad[:, :, 0].abs().sum() > 0


BAD = [
    ("evit", {"x": X}, "needs class_attn"),
    ("col_ln", {"x": X, "q": QK["q"]}, "needs k"),
    ("tome", {"x": X}, "needs k"),
    ("evit", {"x": X[0], **QK}, "x must be a tensor"),
    ("evit", {"x": X, "class_attn": torch.rand(2, 3, 10)}, r"class_attn must be .*\[2, 3, 10\]"),
    ("evit", {"x": X, "q": QK["q"][:, :, 1:], "k": QK["k"]}, "q must be"),
    ("evit", {"x": X, "prefix": 3, **QK}, "prefix 3"),
    ("evit", {"x": X, "q": QK["q"][:, :, 1:], "k": QK["k"][:, :, 1:]}, "needs class_attn"),
    ("tome", {"x": X, "k": QK["k"], "size": torch.ones(2, 10, 1)}, "size must be"),
    ("evit", {"x": X, "queries": QK["q"]}, "no signal queries"),
    ("evit:tokens=10", {"x": X, **QK}, "tokens=10 is more than the 9"),
    ("toem", {"x": X}, "did you mean 'tome'"),
]


@pytest.mark.parametrize(("recipe", "signals", "message"), BAD)
def test_bad_input(recipe, signals, message):
    with pytest.raises(PruneError, match=message):
        sparsight.reduce(recipe, **signals)
