"""SCOPE against the authors' numbers (6bf7306), and inputs that are covered early."""

import pytest
import torch

import sparsight


@pytest.mark.parametrize("name", ["N100_K20_B2_seed0", "N100_K20_a0.5_seed0", "N576_K64_seed0"])
def test_kept_set(newer, name):
    d = newer(f"scope_{name}")
    feats = d["feats"].float()
    recipe = f"scope:tokens={int(d['K'])},alpha={float(d['alpha'])}"
    out = sparsight.reduce(recipe, x=torch.randn(*feats.shape[:2], 8), feats=feats, class_attn=d["class_attn"])
    assert torch.equal(out.plan.keep, d["kept_sorted"])


def test_attention_fills_what_is_covered(rng):
    """Five directions, twenty tokens each: one of each direction, then the most attended."""
    x = torch.eye(5).repeat_interleave(20, dim=0).unsqueeze(0)
    a = torch.rand(1, 1, 100, generator=rng)
    keep = sparsight.reduce("scope:tokens=12", x=x, class_attn=a).plan.keep[0].tolist()
    best = [20 * group + int(a[0, 0, 20 * group : 20 * group + 20].argmax()) for group in range(5)]
    others = [token for token in a[0, 0].sort(descending=True).indices.tolist() if token not in best]
    assert keep == sorted(best + others[:7])


def test_zero_tokens_and_bad_numbers(rng):
    assert sparsight.reduce("scope:tokens=6", x=torch.zeros(1, 9, 4), class_attn=torch.rand(1, 1, 9)).plan.slots == 6
    for alpha in ("-1", "inf"):
        with pytest.raises(sparsight.PruneError, match="alpha"):
            sparsight.parse(f"scope:alpha={alpha}")
