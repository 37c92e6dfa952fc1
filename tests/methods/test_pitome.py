"""PiToMe against the authors' numbers (550b5de), and in a model the margins of its blocks."""

import pytest
import torch

import sparsight
from sparsight.methods import pitome

VECTORS = ("N100_r0.7_m0.3_B2", "N100_r0.9_m0.75_bsm", "N576_r0.9_m0.5")


def test_vectors(newer):
    for name in VECTORS:
        d = newer(f"pitome_{name}_seed0")
        recipe = f"pitome:keep={float(d['ratio'])},margin={float(d['margin'])},spread={float(d['use_bsm'])}"
        out = sparsight.reduce(recipe, x=d["x"].float()[:, 1:], k=d["k"].float(), size=d["size"].float()[:, 1:])
        target = d["target_row"][:, 1:]  # the class token's row is 0
        own = target.gather(1, out.plan.keep)  # the authors' row of each of our slots
        assert torch.equal(own.gather(1, out.plan.owner), target), name
        assert all(len(set(row)) == out.plan.slots == d["out_x"].shape[1] - 1 for row in own.tolist())
        rows = own.unsqueeze(-1)
        torch.testing.assert_close(out.x, d["out_x"].float().gather(1, rows.expand_as(out.x)), rtol=0, atol=1e-5)
        torch.testing.assert_close(out.size, d["out_size"].float().gather(1, rows), rtol=0, atol=1e-5)
        assert torch.equal(out.plan.keep, out.plan.keep.sort(dim=1).values)


def test_any_input_and_share(rng):
    k = torch.randn(2, 2, 31, 4, generator=rng)
    for keys in (k, torch.ones_like(k), torch.zeros_like(k)):
        for keep, spread in ((1, 0), (0.9, 0), (0.9, 1), (0.5, 1), (0.45, 0), (0.1, 0), (0.1, 1)):
            out = sparsight.reduce(f"pitome:keep={keep},spread={spread}", x=torch.randn(2, 31, 5, generator=rng), k=keys)
            assert out.plan.slots == max(16, -(-int(keep * 310) // 10))
            assert out.size.sum(dim=1).eq(31).all()
            assert all(len(set(row)) == out.plan.slots and row == sorted(row) for row in out.plan.keep.tolist())
    for bad in ("margin=2", "spread=1.5"):
        with pytest.raises(sparsight.PruneError, match=bad[:6]):
            sparsight.parse(f"pitome:{bad}")


@torch.no_grad()
def test_the_margin_falls_over_the_blocks(shared_block_vit, monkeypatch, rng):
    margins = []
    whole = pitome.energy
    monkeypatch.setattr(pitome, "energy", lambda likeness, margin: margins.append(margin) or whole(likeness, margin))
    model = shared_block_vit(4)
    with sparsight.prune(model, "pitome:margin=0.8") as handle:
        model(torch.randn(1, 3, 28, 28, generator=rng))
    assert margins == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert handle.counts == [45, 41, 37, 34]
