"""FasterVLM against Theia-4869/FasterVLM f5d5f12."""

import pytest
import torch

import sparsight


@pytest.mark.parametrize("name", ["N100_T20_seed0", "N576_T64_seed0"])
def test_kept_set(vlm, name):
    d = vlm(f"fastervlm_{name}")
    batch, _, n = d["cls_attn"].shape
    x = torch.randn(batch, n, 8)
    out = sparsight.reduce(f"fastervlm:tokens={int(d['T'])}", x=x, class_attn=d["cls_attn"])
    assert torch.equal(out.plan.keep, d["kept_sorted"])
    assert torch.equal(out.x, x[d["index_mask"]].view(batch, -1, 8))


def test_other_scores_need_no_class_token(rng):
    q, k = (torch.randn(2, 4, 30, 8, generator=rng) for _ in range(2))
    received = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
    mean = sparsight.reduce("fastervlm:tokens=7,score=column_mean", x=torch.randn(2, 30, 4), q=q, k=k)
    assert torch.allclose(mean.score, received.mean(dim=(1, 2)), atol=1e-6)
    norm = sparsight.reduce("fastervlm:tokens=7,score=col_ln,order=3", x=torch.randn(2, 30, 4), q=q, k=k)
    assert torch.allclose(norm.score, received.pow(3).sum(2).pow(1 / 3).mean(1), atol=1e-6)


def test_budget_words():
    x, a = torch.randn(1, 576, 4), torch.rand(1, 2, 576)
    counts = {"keep=0.1": 58, "keep=0.05": 29, "tokens=64": 64, "remove=500": 76}
    assert {word: sparsight.reduce(f"fastervlm:{word}", x=x, class_attn=a).plan.slots for word in counts} == counts
    assert str(sparsight.parse("fastervlm:tokens=64")) == "fastervlm:tokens=64"
