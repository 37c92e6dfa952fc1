"""BAT between encoder and language model: the definition in its docstring."""

import pytest
import torch

import sparsight
from sparsight.errors import PruneError


def test_attentive_tokens_stay_and_clusters_are_weighted_means(rng):
    x, a = torch.randn(2, 50, 8, generator=rng), torch.rand(2, 3, 50, generator=rng)
    out = sparsight.reduce("bat:tokens=12,ratio=0.25", x=x, class_attn=a)
    s = a.mean(1)
    assert out.x.shape == (2, 12, 8)
    assert torch.equal(out.plan.keep, out.plan.keep.sort(dim=1).values)
    assert out.size.sum(dim=1).flatten().tolist() == [50, 50]
    for image in range(2):
        attentive = s[image].topk(3).indices
        slots = out.plan.owner[image, attentive]
        assert torch.equal(out.x[image, slots], x[image, attentive])
        assert out.size[image, slots].eq(1).all()
        for slot in range(12):
            member = out.plan.owner[image] == slot
            weight = s[image, member] / s[image, member].sum()
            assert torch.allclose(out.x[image, slot], weight @ x[image, member], atol=1e-5)


def test_clusters_follow_the_groups_of_features(rng):
    """Three tight groups and three clusters: each cluster is one group."""
    group = torch.arange(30) % 3
    x = (100 * torch.eye(3)[group] + torch.randn(30, 3, generator=rng)).unsqueeze(0)
    out = sparsight.reduce("bat:tokens=3,ratio=0", x=x, class_attn=torch.rand(1, 1, 30, generator=rng))
    owner = out.plan.owner[0]
    assert all(owner[group == g].unique().numel() == 1 for g in range(3))
    assert owner.unique().numel() == 3


@pytest.mark.parametrize("ratio", [0, 0.5, 1])
def test_keep_all_changes_nothing(rng, ratio):
    x, a = torch.randn(1, 20, 8, generator=rng), torch.rand(1, 3, 20, generator=rng)
    assert torch.equal(sparsight.reduce(f"bat:keep=1,ratio={ratio}", x=x, class_attn=a).x, x)


def test_ratio_one_drops_the_rest(rng):
    x, a = torch.randn(1, 20, 8, generator=rng), torch.rand(1, 3, 20, generator=rng)
    out = sparsight.reduce("bat:tokens=5,ratio=1", x=x, class_attn=a)
    assert torch.equal(out.x, out.plan.gather(x))
    assert (out.plan.owner == -1).sum() == 15
    with pytest.raises(PruneError, match="ratio"):
        sparsight.parse("bat:ratio=2")
