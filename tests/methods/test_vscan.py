"""VScan's first stage against the authors' numbers (a82450e), and grids and budgets that theirs does not take."""

import itertools

import pytest
import torch

import sparsight
from sparsight.methods import vscan

VECTORS = ("N576_K96", "N576_K100", "N576_K288")


def test_vectors(newer):
    for name in VECTORS:
        d = newer(f"vscan_{name}_seed0")
        given = {"x": d["x"].float(), "class_attn": d["class_attn_deep"], "shallow_class_attn": d["class_attn_shallow"]}
        tokens = int(d["K"])
        out = sparsight.reduce(f"vscan:tokens={tokens},count=authors", **given)
        assert torch.equal(out.plan.keep[0], d["kept_sorted"].flatten()), name
        torch.testing.assert_close(out.x, d["out_tokens"].view_as(out.x).float(), rtol=0, atol=1e-5)
        exact = sparsight.reduce(f"vscan:tokens={tokens}", **given)
        assert exact.plan.slots == tokens
        if tokens != 100:
            assert torch.equal(exact.plan.keep, out.plan.keep)
        assert exact.size.sum() == 576


def test_any_grid_and_budget(rng):
    random = torch.rand(2, 2, 2, 91, generator=rng), torch.randn(2, 91, 6, generator=rng)
    equal = torch.ones(2, 2, 2, 91), torch.zeros(2, 91, 6)
    for (attention, x), window, tokens in itertools.product((random, equal), (1, 3, 6, 40), (1, 2, 15, 44, 90, 91)):
        recipe = f"vscan:tokens={tokens},window={window}"
        out = sparsight.reduce(recipe, x=x, class_attn=attention[0], shallow_class_attn=attention[1], grid=(13, 7))
        assert out.size.sum(dim=1).eq(91).all()
        assert all(len(set(row)) == tokens and row == sorted(row) for row in out.plan.keep.tolist())
    with pytest.raises(sparsight.PruneError, match="window=0"):
        sparsight.parse("vscan:window=0")


def test_last_windows_take_the_rest_of_the_grid():
    window, count = vscan.window_of(torch.arange(13 * 7).unsqueeze(0), (13, 7), 6)
    assert count == 2
    assert window.view(13, 7).tolist() == [[0] * 7] * 6 + [[1] * 7] * 7
