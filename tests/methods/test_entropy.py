"""Shannon and Renyi row entropy against float64 numpy of the definitions."""

import itertools
import math

import pytest
import torch

import sparsight
from sparsight.ops import attention


def test_shannon(golden):
    d = golden("vit/spec_colln_entropy_N50_s0")
    out = sparsight.reduce("shannon:keep=0.5", x=torch.randn(2, 49, 3), attn=d["attn"])
    assert torch.allclose(-out.score.double(), d["shannon_patchrenorm"].double(), rtol=1e-5)


@pytest.mark.parametrize("order", [0.5, 2.0, 3.0, 5.0])
def test_renyi(golden, order):
    d = golden("vit/spec_colln_entropy_N50_s0")
    out = sparsight.reduce(f"renyi:keep=0.5,order={order}", x=torch.randn(2, 49, 3), attn=d["attn"])
    assert torch.allclose(-out.score.double(), d[f"renyi{order}_patchrenorm"].double(), rtol=1e-5)


def test_orders_meet_at_one_and_fall():
    """Renyi entropy tends to Shannon's as the order tends to 1, and falls with the order."""
    signals = {"x": torch.randn(1, 30, 4), "q": torch.randn(1, 2, 31, 8).double(), "k": torch.randn(1, 2, 31, 8).double()}
    entropy = {o: -sparsight.reduce(f"renyi:keep=0.5,order={o}", **signals).score for o in (0.999999, 1, 1.5, 2, 4, math.inf)}
    shannon = -sparsight.reduce("shannon:keep=0.5", **signals).score
    assert torch.equal(entropy[1], shannon)
    assert torch.allclose(entropy[0.999999], shannon, atol=1e-4)
    assert all((a >= b - 1e-9).all() for a, b in itertools.pairwise(list(entropy.values())[1:]))


@pytest.mark.parametrize("order", [0.95, 0.9999, 1 - 1e-9, 1 + 1e-9, 1.00001, 1.05])
@pytest.mark.parametrize("hidden", [False, True])
def test_orders_next_to_one_are_exact(rng, order, hidden):
    """Float32 against the definition in float64, where rounding does not matter yet; hidden keys and padding too."""
    q, k = torch.randn(2, 1, 2, 60, 8, generator=rng) * 2
    valid = torch.arange(60) < 50 if hidden else torch.ones(60, dtype=torch.bool)
    p = (q.double() @ k.double().mT).masked_fill(~valid, -math.inf).softmax(-1)
    near = order if abs(order - 1) > 1e-6 else 1
    expected = torch.special.entr(p).sum(-1) if near == 1 else (p**near).sum(-1).log() / (1 - near)
    found = attention.head_entropy(q, k, 0, 1.0, order, valid=valid[None])
    assert torch.allclose(found[..., valid].double(), expected[..., valid], atol=2e-5)


def test_uniform_attention_has_the_largest_entropy():
    q = torch.zeros(1, 2, 17, 8)
    for order in (0.5, 1, 2, 3):
        out = sparsight.reduce(f"renyi:keep=0.5,order={order}", x=torch.randn(1, 16, 4), q=q, k=torch.randn(1, 2, 17, 8))
        assert torch.allclose(-out.score, torch.full((1, 16), math.log(16)), atol=1e-5)


def test_focused_patches_are_kept():
    attn = torch.full((1, 1, 9, 9), 1 / 9)
    attn[:, :, 3] = torch.eye(9)[3]
    out = sparsight.reduce("shannon:tokens=1", x=torch.randn(1, 8, 4), attn=attn)
    assert out.plan.keep.tolist() == [[2]]
