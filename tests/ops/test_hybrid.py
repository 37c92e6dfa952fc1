"""Selections of two parts."""

import torch

from sparsight.ops import hybrid


def test_descending_leaves_out_what_is_taken():
    s = torch.tensor([[1.0, 4, 3, 4, 2]])
    assert hybrid.descending(s, torch.tensor([[3, 0]])).tolist() == [[1, 2, 4]]


def test_farthest_and_top_share_the_count():
    s = torch.tensor([[5.0, 4, 3, 2, 1], [5.0, 4, 3, 2, 1]])
    order = torch.tensor([[4, 0, 3], [4, 0, 3]])
    plan = hybrid.farthest_and_top(s, order, torch.tensor([1, 2]))
    assert plan.keep.tolist() == [[0, 1, 4], [0, 1, 4]]
    assert hybrid.farthest_and_top(s, order, torch.tensor([3, 0])).keep.tolist() == [[0, 3, 4], [0, 1, 2]]


def test_stacked_plans_are_the_batch(rng):
    s, x = torch.rand(3, 20, generator=rng), torch.randn(3, 20, 6, generator=rng)
    whole = hybrid.top_and_clusters(s, x, 7, 3)
    parts = hybrid.stacked([hybrid.top_and_clusters(s[i : i + 1], x[i : i + 1], 7, 3) for i in range(3)])
    assert torch.equal(whole.keep, parts.keep)
    assert torch.equal(whole.owner, parts.owner)
    assert torch.allclose(whole.mix, parts.mix)
