"""The random baseline: reproducible, fair, different for every seed."""

import torch

import sparsight


def kept(n: int, seed: int, tokens: int = 50) -> torch.Tensor:
    return sparsight.reduce(f"random:tokens={tokens},seed={seed}", x=torch.zeros(1, n, 1)).plan.keep[0]


def test_same_seed_same_tokens_whatever_the_batch():
    one = sparsight.reduce("random:keep=0.3,seed=5", x=torch.randn(1, 196, 2)).plan.keep
    many = sparsight.reduce("random:keep=0.3,seed=5", x=torch.randn(4, 196, 2)).plan.keep
    assert torch.equal(many, one.expand_as(many))


def test_seeds_and_counts_differ():
    assert not torch.equal(kept(196, 0), kept(196, 1))
    assert not torch.equal(kept(196, 0), kept(197, 0))


def test_every_place_is_kept_about_equally_often():
    """400 seeds, 50 of 200: a binomial count of mean 100 and deviation 8.7 for every place; chi-square over the places."""
    counts = torch.zeros(200)
    for seed in range(400):
        counts[kept(200, seed)] += 1
    chi = ((counts - 100) ** 2 / 75).sum().item()
    assert 130 < chi < 290
