"""EVS and VidCom2 against the numbers of vLLM (094f117) and of the authors (944a17d), and inputs that theirs are not made for."""

import itertools

import torch

import sparsight
from sparsight.methods import vidcom2


def test_evs_vectors(newer):
    for name in ("T8_6x12_q0.7", "T16_6x6_q0.9", "T4_10x10_q0.8"):
        d = newer(f"evs_{name}_seed0")
        keep = sparsight.reduce(f"evs:keep={1 - float(d['q'])}", x=d["x"].float().unsqueeze(0), frames=int(d["frames"])).plan.keep
        assert keep.shape[1] == int(d["count"]), name
        assert torch.equal(keep[0], d["kept_sorted"]), name


def test_vidcom2_vectors(newer):
    for name in ("T8_n72_r0.25", "T16_n36_r0.15"):
        d = newer(f"vidcom2_{name}_seed0")
        x, frames = d["x"].float().unsqueeze(0), int(d["frames"])
        assert torch.equal(vidcom2.calmest(x)[0], d["channels"]), name
        recipe = f"vidcom2:keep={float(d['ratio'])}"
        authors = sparsight.reduce(f"{recipe},count=authors", x=x, frames=frames).plan.keep[0]
        assert torch.equal(authors, d["kept_sorted"]), name
        exact = sparsight.reduce(recipe, x=x, frames=frames).plan.keep[0]
        assert exact.shape[0] == int(float(d["ratio"]) * x.shape[1])
        assert set(authors.tolist()) ^ set(exact.tolist()) <= {*authors.tolist(), *exact.tolist()}
        assert abs(len(exact) - len(authors)) == len(set(authors.tolist()) ^ set(exact.tolist()))


def test_any_video(rng):
    """Distinct, ascending, exactly the budget; EVS never less than the first frame; a picture is a video of one frame."""
    noise = torch.randn(2, 24, 6, generator=rng)
    for x, frames, tokens in itertools.product((noise, torch.ones(2, 24, 6), torch.zeros(2, 24, 6)), (1, 4, 24), (1, 3, 7, 23, 24)):
        for recipe, count in ((f"vidcom2:tokens={tokens}", tokens), (f"evs:tokens={tokens}", max(tokens, 24 // frames))):
            keep = sparsight.reduce(recipe, x=x, frames=frames).plan.keep
            assert all(len(set(row)) == count and row == sorted(row) for row in keep.tolist()), recipe
    alone = [sparsight.reduce("vidcom2:keep=0.3", x=noise[i : i + 1], frames=4).plan.keep[0] for i in range(2)]
    assert torch.equal(torch.stack(alone), sparsight.reduce("vidcom2:keep=0.3", x=noise, frames=4).plan.keep)
