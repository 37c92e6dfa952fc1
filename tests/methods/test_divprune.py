"""DivPrune against vbdi/divprune 799e2d9."""

import pytest
import torch

import sparsight

NAMES = ["N100_r10_seed0", "N576_k64_seed1", "N576_k128_seed11", "N576_r098_seed0"]


@pytest.mark.parametrize("name", NAMES)
def test_kept_set(vlm, name):
    d = vlm(f"divprune_{name}")
    x, kept = d["features"].unsqueeze(0), d["kept_sorted"]
    for recipe in (f"divprune:tokens={len(kept)}", f"divprune:keep={float(d['ratio']):.8g}"):
        assert torch.equal(sparsight.reduce(recipe, x=x).plan.keep[0], kept)


def test_default_is_the_authors():
    assert sparsight.reduce("divprune", x=torch.randn(1, 576, 8)).plan.slots == 56


def test_duplicates_and_zeros_give_the_count_asked_for(rng):
    x = torch.randn(5, 8, generator=rng).repeat(4, 1).unsqueeze(0)
    x[:, 3] = 0
    keep = sparsight.reduce("divprune:tokens=10", x=x).plan.keep[0].tolist()
    assert len(set(keep)) == 10
    assert {tuple(row) for row in x[0, keep].tolist()} == {tuple(row) for row in x[0].tolist()}
    assert sparsight.reduce("divprune:tokens=4", x=torch.ones(1, 6, 3)).plan.keep[0].tolist() == [0, 1, 2, 3]
    assert sparsight.reduce("divprune:tokens=1", x=torch.ones(1, 1, 3)).plan.keep.tolist() == [[0]]
