"""HoloV against the authors' numbers (1d2e65e), and what they lose where a crop overflows."""

import pytest
import torch

import sparsight


@pytest.mark.parametrize("name", ["N100_P7_K30_B2_seed0", "N576_P16_K192_seed0", "N576_P16_K64_seed0"])
def test_positions(newer, name):
    d = newer(f"holov_{name}")
    recipe = f"holov:tokens={int(d['K'])},crops={int(d['num_crops'])},alpha={float(d['alpha'])},overflow=authors"
    signals = {"x": d["x"].float(), "class_attn": d["class_attn"]}
    out, spatial = sparsight.reduce(f"{recipe},order=authors", **signals), sparsight.reduce(recipe, **signals)
    for image, wanted in enumerate(d["positions"]):
        wanted = wanted[wanted >= 0].tolist()
        assert out.plan.counts[image] == len(wanted)
        assert out.plan.keep[image, : len(wanted)].tolist() == wanted
        assert spatial.plan.keep[image, : len(wanted)].tolist() == sorted(wanted)


def test_overflow_goes_to_the_next_crops(newer):
    d = newer("holov_N576_P16_K192_seed0")
    signals = {"x": d["x"].float(), "class_attn": d["class_attn"]}
    out = sparsight.reduce("holov:tokens=192", **signals)
    assert out.plan.counts == [192]
    lost = set(d["positions"][0].tolist()) - {-1}
    assert lost < set(out.plan.keep[0].tolist())
    assert torch.equal(out.plan.keep, out.plan.keep.sort(dim=1).values)


def test_any_number_of_crops(rng):
    x, a = torch.randn(2, 23, 4, generator=rng), torch.rand(2, 2, 23, generator=rng)
    for crops in (1, 5, 23, 100):
        for tokens in (1, 7, 22, 23):
            keep = sparsight.reduce(f"holov:tokens={tokens},crops={crops}", x=x, class_attn=a).plan.keep
            assert all(len(set(row)) == tokens for row in keep.tolist())
    for recipe in ("holov:crops=0", "holov:alpha=-1"):
        with pytest.raises(sparsight.PruneError, match="crop"):
            sparsight.parse(recipe)
