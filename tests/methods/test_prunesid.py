"""PruneSID against the authors' numbers (4ef17d9): exactly behind their random groups, loosely with the exact ones."""

import itertools

import pytest
import torch

import sparsight
from sparsight.methods import prunesid
from sparsight.ops import diversity

NAMES = ["N100_K24_B2_seed0", "N576_K32_seed0", "N576_K64_seed1"]


@pytest.mark.parametrize("name", NAMES)
def test_behind_the_groups(newer, name):
    d = newer(f"prunesid_{name}")
    x, s, count = d["hidden"].float()[:, 1:], d["class_attn"].sum(dim=1), int(d["K"])
    torch.testing.assert_close(prunesid.threshold_of(diversity.cosine(x), count), d["threshold"], rtol=1e-5, atol=1e-6)
    plan = prunesid.by_groups(s, x, d["group"], count, True, "authors")
    assert plan.led
    assert torch.equal(plan.keep, d["token_indices"][:, 1:] - 1)
    assert torch.equal(prunesid.by_groups(s, x, d["group"], count, True, "spatial").keep, plan.keep.sort(dim=1).values)


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_tokens_are_about_theirs(newer, name):
    d = newer(f"prunesid_{name}")
    x, count = d["hidden"].float(), int(d["K"])
    agree = (prunesid.components(x[:, 1:], count // 4) == d["group"]).double().mean()
    assert agree == pytest.approx(float(d["exact_svd_group_agreement"]), abs=0.02)
    out = sparsight.reduce(f"prunesid:tokens={count}", x=x[:, 1:], class_token=x[:, :1], class_attn=d["class_attn"])
    assert out.x.shape[1] == count
    assert torch.equal(out.x[:, :1], x[:, :1])
    assert torch.equal(out.x[:, 1:], out.plan.gather(x[:, 1:]))
    assert out.size[:, :, 0].tolist() == [[0.0] + [1.0] * (count - 1)] * len(x)


@pytest.mark.parametrize("kind", ["equal", "zero", "rank", "random"])
def test_distinct_tokens_whatever_the_input(rng, kind):
    noise = torch.randn(2, 40, 3, generator=rng)
    x = {
        "equal": torch.ones(2, 40, 8),
        "zero": torch.zeros(2, 40, 8),
        "rank": noise,
        "random": torch.randn(2, 40, 50, generator=rng),
    }[kind]
    q, k = torch.randn(2, 2, 2, 41, 4, generator=rng)
    for tokens, score in itertools.product((2, 3, 9, 39), ("class", "column_mean")):
        out = sparsight.reduce(f"prunesid:tokens={tokens},score={score}", x=x, q=q, k=k, class_token=x[:, :1])
        count = tokens - (score == "class")
        assert all(len(set(row)) == count and row == sorted(row) for row in out.plan.keep.tolist())
        assert out.plan.slots == out.x.shape[1] == tokens
