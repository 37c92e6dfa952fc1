"""Similarity matrices and the greedy choices from them."""

import torch

import sparsight
from sparsight.ops import diversity


def test_matrices(rng):
    x = torch.randn(2, 20, 8, generator=rng) + 3
    x[0, 4] = 0
    unit = torch.nn.functional.normalize(x, dim=-1)
    assert torch.allclose(diversity.cosine(x), unit @ unit.mT, atol=1e-6)
    assert torch.allclose(diversity.squared_distance(x), torch.cdist(x.double(), x.double()).square().float(), atol=1e-4)


def test_loneliest_and_ties():
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.0, -1.0]]])
    similarity = diversity.cosine(x)
    first = diversity.loneliest(similarity)
    assert first.tolist() == [[4]]
    # ties go to the lower index; nobody is taken twice
    assert diversity.farthest_first(torch.ones(1, 4, 4), torch.tensor([[2]]), 4).tolist() == [[2, 0, 1, 3]]


def test_mutual_neighbours_tie():
    """Of two tokens that are each other's nearest neighbour, farther than all others are from theirs, the lower index is taken."""
    for seed in range(100):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)).repeat_interleave(2, dim=0)
        x[0::2] += (
            torch.randn(4, 64, generator=torch.Generator().manual_seed(seed + 1)) * torch.tensor([0.3, 0.3, 0.9, 0.3])[:, None]
        )
        place = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        exact = torch.nn.functional.normalize(x[place].double(), dim=-1)
        alike = (exact @ exact.mT).fill_diagonal_(-1).amax(dim=1)
        lonely = (alike <= alike.min() + 1e-12).nonzero().flatten().tolist()
        assert len(lonely) == 2
        assert sparsight.reduce("divprune:tokens=1", x=x[place].unsqueeze(0)).plan.keep[0].tolist() == lonely[:1]


def test_matrices_are_symmetric(rng):
    x = torch.randn(2, 77, 33, generator=rng)
    for matrix in (diversity.cosine(x), diversity.squared_distance(x), diversity.distance(x)):
        assert torch.equal(matrix, matrix.mT)
    assert not diversity.distance(x).diagonal(dim1=1, dim2=2).any()
    assert torch.allclose(diversity.distance(x).double(), torch.cdist(x.double(), x.double()), atol=1e-6)


def test_thin_out_ends_at_the_count_from_any_length():
    similarity = torch.eye(30).unsqueeze(0)
    for length in range(1, 31):
        left = torch.arange(length).unsqueeze(0)
        for count in range(length + 1):
            got = diversity.thin_out(similarity, left, count)[0].tolist()
            assert len(got) == len(set(got)) == count


def test_by_threshold_counts_natural_choices():
    """Distance 0 to the own pair, 1 to all others: of three pairs, three are natural and the rest by score."""
    pair = torch.arange(6) // 2
    similarity = (pair == pair.unsqueeze(1)).float().unsqueeze(0)
    s = torch.tensor([[6.0, 5, 4, 3, 2, 1]])
    order, natural = diversity.by_threshold(similarity, s, 5, torch.tensor([0.1]), 0.5)
    assert order.tolist() == [[0, 2, 4, 1, 3]]
    assert natural.tolist() == [3]
