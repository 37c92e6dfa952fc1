"""Farthest point sampling against stored picks and against the definition."""

import pytest
import torch

import sparsight


@pytest.mark.parametrize("name", ["N100_K20", "N576_K64"])
def test_stored_picks(vlm, name):
    d = vlm(f"NONOFFICIAL_seed003_threshold_{name}_seed0")
    out = sparsight.reduce(f"fps:tokens={int(d['K'])}", x=d["features"].unsqueeze(0))
    assert torch.equal(out.plan.keep[0], d["fps_order_start0"].sort().values)


@pytest.mark.parametrize("start", ["first", "attention", "mean"])
@pytest.mark.parametrize("space", ["tokens", "features"])
def test_definition(rng, start, space):
    x, feats = torch.randn(2, 30, 8, generator=rng) + 5, torch.randn(2, 30, 12, generator=rng)
    a = torch.rand(2, 3, 30, generator=rng)
    out = sparsight.reduce(f"fps:tokens=9,start={start},space={space}", x=x, feats=feats, class_attn=a)
    for image in range(2):
        points = (x if space == "tokens" else feats)[image].double()
        far = (points - points.mean(0)).norm(dim=1).argmax()
        chosen = [{"first": 0, "attention": int(a[image].mean(0).argmax()), "mean": int(far)}[start]]
        while len(chosen) < 9:
            nearest = torch.cdist(points, points[chosen]).amin(1)
            nearest[chosen] = -1
            chosen.append(int(nearest.argmax()))
        assert out.plan.keep[image].tolist() == sorted(chosen)
