"""Similarity pruning against a plain double loop."""

import math

import pytest
import torch

import sparsight


def redundancy(x: torch.Tensor, metric: str, sigma: float, side: int) -> torch.Tensor:
    n = x.shape[0]
    out = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        total = weight = 0.0
        for j in range(n):
            if i == j:
                continue
            a, b = x[i], x[j]
            s = {"cosine": a @ b / (a.norm() * b.norm()), "l2": -(a - b).norm(), "dot": a @ b}[metric]
            far = (i // side - j // side) ** 2 + (i % side - j % side) ** 2
            w = math.exp(-far / (2 * sigma**2)) if sigma else 1.0
            total, weight = total + w * s.item(), weight + w
        out[i] = total / weight
    return out


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("sigma", [0, 1.5])
def test_score(metric, sigma):
    x = torch.randn(2, 16, 5, dtype=torch.float64)
    out = sparsight.reduce(f"similarity:keep=0.5,metric={metric},diversity={sigma}", x=x)
    for image in range(2):
        assert torch.allclose(-out.score[image], redundancy(x[image], metric, sigma, 4))


def test_keeps_the_odd_one_out():
    x = torch.ones(1, 9, 4)
    x[0, 5] = torch.tensor([1.0, -1, 1, -1])
    assert sparsight.reduce("similarity:tokens=1", x=x).plan.keep.tolist() == [[5]]


def test_compares_the_projection_when_it_is_given():
    x, feats = torch.randn(1, 9, 4), torch.randn(1, 9, 6)
    assert torch.equal(
        sparsight.reduce("similarity:tokens=4", x=x, feats=feats).plan.keep,
        sparsight.reduce("similarity:tokens=4", x=feats).plan.keep,
    )


def test_a_grid_is_needed_for_diversity():
    with pytest.raises(sparsight.PruneError, match="grid"):
        sparsight.reduce("similarity:tokens=4,diversity=2", x=torch.randn(1, 10, 4))
    out = sparsight.reduce("similarity:tokens=4,diversity=2", x=torch.randn(1, 10, 4), grid=(2, 5))
    assert out.plan.slots == 4


def test_any_number_of_tokens_without_a_grid():
    assert sparsight.reduce("similarity:tokens=4", x=torch.randn(1, 10, 4)).plan.slots == 4
