"""AgilePruner against a stored reading of its equation 6 (no code of the authors is public), and its mixtures."""

import pytest
import torch

import sparsight
from sparsight.errors import PruneError
from sparsight.evaluation import metrics


@pytest.mark.parametrize("place", ["attention", "selection"])
@pytest.mark.parametrize("name", ["N100_K20", "N576_K64"])
def test_stored_picks(vlm, name, place):
    d = vlm(f"NONOFFICIAL_seed003_threshold_{name}_seed0")
    x, a = d["features"].unsqueeze(0), d["attn"].unsqueeze(0)
    assert metrics.effective_rank(x[0]) == pytest.approx(float(d["erank"]), abs=1e-4)
    assert metrics.attention_entropy(a[0]) == pytest.approx(float(d["attn_entropy"]), abs=1e-5)
    out = sparsight.reduce(f"agile:tokens={int(d['K'])},erank_avg=35,tau_max=0.5,place={place}", x=x, class_attn=a)
    assert torch.equal(out.plan.keep[0], d[f"selected_order_{place}"].sort().values)


def images(rng, n: int = 80) -> dict[str, torch.Tensor]:
    """Three images, from simple to complex: of rank 1, 8 and full, with ever flatter attention."""
    x = torch.stack([torch.randn(n, r, generator=rng) @ torch.randn(r, 32, generator=rng) for r in (1, 8, 32)])
    sharpness = torch.tensor([4.0, 2.0, 0.0])[:, None, None]
    return {"x": x, "class_attn": (sharpness * torch.randn(3, 2, n, generator=rng)).softmax(-1)}


@pytest.mark.parametrize("by", ["erank", "entropy"])
def test_adaptive_count_follows_complexity(rng, by):
    d = images(rng)
    out = sparsight.reduce(f"agile:tokens=20,by={by},count=adaptive,erank_avg=8,entropy_avg=3.5", **d)
    ratio = metrics.effective_rank(d["x"]) / 8 if by == "erank" else metrics.attention_entropy(d["class_attn"]) / 3.5
    assert out.plan.counts == (20 * ratio.clamp(0.8, 1.2) + 0.5).long().tolist()
    assert out.plan.counts[0] == 16
    assert out.plan.counts[2] == 24
    for image, count in enumerate(out.plan.counts):
        alone = sparsight.reduce(
            f"agile:tokens=20,by={by},count=adaptive,erank_avg=8,entropy_avg=3.5", **{k: v[image : image + 1] for k, v in d.items()}
        )
        assert torch.equal(out.plan.keep[image, :count], alone.plan.keep[0])
        assert out.plan.keep[image, count:].eq(-1).all()
        assert torch.equal(out.x[image, :count], alone.x[0])


def test_threshold_zero_is_plain_attention(rng):
    d = images(rng)
    plain = sparsight.reduce("fastervlm:tokens=20", **d)
    assert torch.equal(sparsight.reduce("agile:tokens=20,tau_max=0", **d).plan.keep, plain.plan.keep)


def test_all_ruled_out_is_filled_by_attention(rng):
    """Equal tokens rule one another out at once: the best by attention follow."""
    a = torch.rand(1, 1, 30, generator=rng)
    out = sparsight.reduce("agile:tokens=6", x=torch.ones(1, 30, 4), class_attn=a)
    assert out.plan.keep[0].tolist() == a[0, 0].topk(6).indices.sort().values.tolist()


@pytest.mark.parametrize("diversity", ["divprune", "vispruner", "bat", "fps"])
def test_mix_ends_at_its_parts(rng, diversity):
    """Share 1 is attention alone, share 0 diversity alone."""
    d = images(rng)
    every = sparsight.reduce(f"mix:tokens=16,diversity={diversity},by=fixed,ratio=1", **d)
    assert torch.equal(every.plan.keep, sparsight.reduce("fastervlm:tokens=16", **d).plan.keep)
    none = sparsight.reduce(f"mix:tokens=16,diversity={diversity},by=fixed,ratio=0,low=0", **d)
    alone = diversity if diversity in ("divprune", "fps") else f"{diversity}:ratio=0"
    alone = sparsight.reduce(f"{alone}{',' if ':' in alone else ':'}tokens=16", **d)
    assert torch.equal(none.plan.keep, alone.plan.keep)
    assert torch.equal(none.x, alone.x)


@pytest.mark.parametrize("diversity", ["divprune", "vispruner", "bat"])
@pytest.mark.parametrize("inverse", ["false", "true"])
def test_mix_shares_by_rank(rng, diversity, inverse):
    d = images(rng)
    recipe = f"mix:tokens=16,diversity={diversity},erank_avg=8,erank_span=40,inverse={inverse}"
    out = sparsight.reduce(recipe, **d)
    away = 8 - metrics.effective_rank(d["x"])
    share = (0.5 + (away if inverse == "false" else -away) * 0.5 / 40).clamp(0.25, 0.75)
    assert share[0] != share[2]
    for image in range(3):
        fixed = f"mix:tokens=16,diversity={diversity},by=fixed,ratio={float(share[image])}"
        alone = sparsight.reduce(fixed, **{k: v[image : image + 1] for k, v in d.items()})
        assert torch.equal(out.plan.keep[image], alone.plan.keep[0])
        assert torch.allclose(out.x[image], alone.x[0], atol=1e-6)


def test_mix_of_fastervlm_and_divprune(rng):
    """The first tokens of DivPrune's greedy order, then the highest attention among the others."""
    d = images(rng)
    out = sparsight.reduce("mix:tokens=10,attention=fastervlm,diversity=divprune,by=fixed,ratio=0.3", **d)
    for image in range(3):
        diverse = sparsight.reduce("divprune:tokens=7", x=d["x"][image : image + 1]).plan.keep[0].tolist()
        ranked = d["class_attn"][image].mean(0).sort(descending=True, stable=True).indices.tolist()
        assert out.plan.keep[image].tolist() == sorted(diverse + [i for i in ranked if i not in diverse][:3])


def test_rank_and_distance_spaces(rng):
    d = images(rng)
    feats = d["x"].flip(0)
    by_features = sparsight.reduce("agile:tokens=9,rank_space=features,erank_avg=8", feats=feats, **d)
    by_tokens = sparsight.reduce("agile:tokens=9,space=features,erank_avg=8", feats=feats, **d)
    both = sparsight.reduce("agile:tokens=9,erank_avg=8", x=feats, class_attn=d["class_attn"])
    assert torch.equal(by_features.plan.keep, both.plan.keep)
    assert torch.equal(by_tokens.plan.keep[1], both.plan.keep[1])  # the middle image is the same in both


@pytest.mark.parametrize("recipe", ["agile:erank_avg=0", "agile:tau_max=-1", "mix:low=0.9", "mix:ratio=2", "mix:diversity=agile"])
def test_bad_numbers(recipe):
    with pytest.raises(PruneError, match=r"above|0 or more|share|choose"):
        sparsight.parse(recipe)
