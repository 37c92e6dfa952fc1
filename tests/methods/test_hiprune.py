"""HiPrune against the authors' numbers (6e83a12), and where their neighbours leave the image."""

import itertools

import pytest
import torch

import sparsight
from sparsight.methods import hiprune
from sparsight.signals import derive

VECTORS = ("N100_K40", "N576_K128_a0.5", "N576_K192", "N576_K64")


def test_vectors(newer):
    for name in VECTORS:
        d = newer(f"hiprune_{name}_seed0")
        x = torch.zeros(*d["object_column_mean"].shape, 1)
        given = {"x": x, "q": d["q_deep"], "k": d["k_deep"], "shallow_q": d["q_object"], "shallow_k": d["k_object"]}
        queries = d["q_deep"].shape[1] * d["q_deep"].shape[2]
        for signal, mean in (("token_weight", "deep_column_mean"), ("shallow_token_weight", "object_column_mean")):
            torch.testing.assert_close(derive(signal, given).double() / queries, d[mean].double(), rtol=0, atol=1e-5)
        recipe = f"hiprune:tokens={int(d['K'])},alpha={float(d['alpha'])}"
        authors = sparsight.reduce(f"{recipe},neighbours=authors", **given).plan.keep
        assert torch.equal(authors, d["kept_sorted"]), name
        assert sparsight.reduce(recipe, **given).plan.keep.shape == authors.shape


def test_neighbours_stay_on_the_image():
    """An anchor at a row's end: its right neighbour is none, where the authors' is the next row's first token."""
    place = torch.arange(12).unsqueeze(0)
    centre = (place == 3) | (place == 8)
    near = hiprune.on_grid(centre, place, (3, 4))[0].nonzero().flatten().tolist()
    assert near == [2, 3, 4, 7, 8, 9]
    assert hiprune.along_raster(centre, (3, 4))[0].nonzero().flatten().tolist() == [0, 2, 3, 4, 7, 8, 9, 11]
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0)).unsqueeze(0)
    assert torch.equal(
        hiprune.on_grid(centre.gather(1, shuffled), shuffled, (3, 4))[0], hiprune.on_grid(centre, place, (3, 4))[0][shuffled[0]]
    )


def test_exactly_as_many_distinct_tokens_as_asked(rng):
    weights, x = (torch.rand(2, 2, 30, generator=rng), torch.ones(2, 2, 30)), torch.zeros(2, 30, 1)
    for weight, alpha, tokens, neighbours in itertools.product(weights, (0, 0.1, 1), (1, 2, 7, 13, 29, 30), ("grid", "authors")):
        recipe = f"hiprune:tokens={tokens},alpha={alpha},neighbours={neighbours}"
        keep = sparsight.reduce(recipe, x=x, token_weight=weight[0], shallow_token_weight=weight[1], grid=(5, 6)).plan.keep
        assert all(len(set(row)) == tokens and row == sorted(row) for row in keep.tolist())
    with pytest.raises(sparsight.PruneError, match="alpha"):
        sparsight.parse("hiprune:alpha=2")
