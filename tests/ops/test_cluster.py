"""Clusters where tokens are alike: ties go to the lower index, no cluster is empty."""

import pytest
import torch

import sparsight
from sparsight.ops import cluster


@pytest.mark.parametrize("n", [10, 40])
def test_density_of_one_neighbour_is_that_of_the_token_itself(rng, n):
    """All densities are 1, so the first tokens are the peaks, whatever mode a distance matrix is computed in."""
    x = torch.randn(1, n, 12, generator=rng) + 5
    found = cluster.density_peaks(x, 3, neighbours=1)
    assert found.density.eq(1).all()
    assert found.centres.tolist() == [[0, 1, 2]]


def test_density_of_two_neighbours_ties_between_each_others_nearest(rng):
    pairs = 10 * torch.randn(1, 20, 12, generator=rng).repeat_interleave(2, dim=1)
    x = pairs + torch.randn(1, 40, 12, generator=rng)
    density = cluster.density_peaks(x, 2).density[0]
    assert torch.equal(density[0::2], density[1::2])


def test_bat_with_one_cluster_centres_on_the_first_token(rng):
    x = torch.randn(1, 40, 12, generator=rng)
    done = sparsight.reduce("bat:tokens=1,ratio=0", x=x, class_attn=torch.rand(1, 2, 40, generator=rng))
    assert done.plan.keep.tolist() == [[0]]


def test_coreset_of_identical_tokens_takes_none_twice():
    chosen, member, weight = cluster.coreset(torch.ones(1, 9, 4), torch.tensor([2]), 4)
    assert chosen.tolist() == [[2, 0, 1, 3]]
    assert member[0].bincount().tolist() == [6, 1, 1, 1]
    assert weight.sum() == 4


def test_tca_of_identical_tokens_leaves_no_empty_token():
    done = sparsight.reduce("tca:keep=0.8", x=torch.ones(1, 40, 8), class_attn=torch.rand(1, 2, 40))
    assert done.size.min() >= 1
    assert done.size.sum() == 40
