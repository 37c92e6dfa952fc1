"""Similarity pruning against a plain double loop."""

import math

import pytest
import torch

import sparsight
from sparsight.ops import score


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
@pytest.mark.parametrize("pairs", [score.PAIRS, 80], ids=["whole", "pieces"])
def test_score(metric, sigma, pairs, monkeypatch):
    monkeypatch.setattr(score, "PAIRS", pairs)
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


def test_fixed_threshold():
    x = torch.randn(3, 16, 5, dtype=torch.float64)
    plan = sparsight.reduce("similarity:threshold=0.02", x=x).plan
    for image in range(3):
        expected = [i for i, r in enumerate(redundancy(x[image], "cosine", 0, 4)) if r <= 0.02]
        assert plan.keep[image, : plan.counts[image]].tolist() == expected


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("kappa", [-0.5, 0, 1])
def test_adaptive_threshold(metric, kappa):
    x = torch.randn(3, 16, 5, dtype=torch.float64)
    plan = sparsight.reduce(f"similarity:threshold=adaptive,kappa={kappa},metric={metric},diversity=1.5", x=x).plan
    for image in range(3):
        r = redundancy(x[image], metric, 1.5, 4)
        expected = torch.nonzero(r <= r.mean() + kappa * r.std(unbiased=False)).flatten().tolist()
        assert plan.keep[image, : plan.counts[image]].tolist() == expected


def test_one_token_is_left_at_least():
    x = torch.randn(1, 16, 5)
    strict = sparsight.reduce("similarity:threshold=-1", x=x)
    assert strict.plan.keep.tolist() == [[strict.score.argmax().item()]]
    equal = sparsight.reduce("similarity:threshold=adaptive", x=torch.ones(2, 9, 3)).plan
    assert equal.counts == [9, 9]


@pytest.mark.parametrize("budget", ["tokens=8", "tokens=3", "threshold=-1"])
def test_cells(budget):
    """A 4 x 6 grid in cells of 2 x 2: six cells, the best of each, of the best cells first."""
    x = torch.randn(2, 24, 5)
    out = sparsight.reduce(f"similarity:{budget},cells=2", x=x, grid=(4, 6))
    cell = [(i // 6 // 2) * 3 + i % 6 // 2 for i in range(24)]
    for image in range(2):
        s = out.score[image]
        best = sorted((max((i for i in range(24) if cell[i] == c), key=lambda i: s[i]) for c in range(6)), key=lambda i: -s[i])
        others = sorted(set(range(24)) - set(best), key=lambda i: -s[i])
        count = {"tokens=8": 8, "tokens=3": 3, "threshold=-1": 6}[budget]
        assert out.plan.keep[image].tolist() == sorted((best + others)[:count])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("similarity:threshold=0.5,keep=0.7", "keep= is given"),
        ("similarity:threshold=0.5,tokens=7", "tokens= is given"),
        ("similarity:threshold=much", "threshold=much"),
        ("similarity:threshold=inf", "threshold=inf"),
        ("similarity:cells=-1", "negative"),
        ("similarity:threshold=adaptive,kappa=nan", "kappa=nan"),
    ],
)
def test_bad_input(text, words):
    with pytest.raises(sparsight.PruneError, match=words):
        sparsight.parse(text)


def test_a_threshold_is_an_option_too(shared_block_vit):
    with sparsight.prune(shared_block_vit(1), "similarity:layers=0", threshold="adaptive", kappa=1) as handle:
        assert str(handle.recipe) == "similarity:layers=0,threshold=adaptive,kappa=1"
        assert sparsight.Recipe.from_json(handle.recipe.to_json()) == handle.recipe
    with pytest.raises(sparsight.PruneError, match="keep= is given"):
        sparsight.prune(shared_block_vit(1), "similarity:layers=0,keep=0.4", threshold="adaptive")
