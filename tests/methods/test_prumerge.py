"""PruMerge and PruMerge+ against 42Shawn/LLaVA-PruMerge 097c041."""

import numpy as np
import pytest
import torch

import sparsight
from sparsight.errors import PruneError

GROUPS = {
    "prumerge_N100_adaptive": "prumerge:shared=true",
    "prumerge_N576_adaptive": "prumerge",
    "prumerge_N576_fixed12.5": "prumerge:tokens=72",
    "prumergeplus_N576_adaptive": "prumerge_plus",
    "prumergeplus_N576_trainpath12.5": "prumerge_plus:keep=0.125,spacing=training",
}


def draw(rng, n: int, batch: int = 1, heads: int = 2) -> dict[str, torch.Tensor]:
    q, k = (2 * torch.randn(batch, heads, n + 1, 8, generator=rng) for _ in range(2))
    return {"x": torch.randn(batch, n, 12, generator=rng), "q": q, "k": k}


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("name", GROUPS)
def test_tokens_and_centres(vlm, name, heads):
    d = vlm(f"{name}_seed0")
    q, k = (d[key].unflatten(-1, (heads, -1)).transpose(1, 2) for key in ("q_proj", "k_proj"))
    out = sparsight.reduce(GROUPS[name], x=d["hidden_states"][:, 1:], q=q, k=k)
    assert torch.equal(out.plan.keep, d["idx"])
    assert torch.allclose(out.x, d["out_tokens"], atol=1e-4)
    assert torch.allclose(out.score, d["cls_attn"], atol=1e-6)
    assert out.plan.counts == [d["out_tokens"].shape[1]] * len(out.x)
    if "train" not in name:
        assert torch.equal(out.plan.dropped(), d["compl"])
        assert out.plan.owner.gather(1, d["compl"]).eq(out.plan.slots - 1).all()


def test_every_image_finds_its_own_count(rng):
    d = draw(rng, 200, batch=6)
    d["q"][:, :, 0] *= torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])[:, None, None]
    out = sparsight.reduce("prumerge", **d)
    assert len(set(out.plan.counts)) > 2
    assert out.plan.counts[0] == 1  # no outliers in uniform attention: only the sum of all
    for image, count in enumerate(out.plan.counts):
        alone = sparsight.reduce("prumerge", **{key: value[image : image + 1] for key, value in d.items()})
        a = alone.score[0].numpy()
        low, high = np.percentile(a, [25, 75])
        assert count == (a > high + 1.5 * (high - low)).sum() + 1
        assert torch.equal(out.plan.keep[image, : count - 1], alone.plan.keep[0])
        assert out.plan.keep[image, count - 1 :].eq(-1).all()
        assert torch.allclose(out.x[image, :count], alone.x[0], atol=1e-6)
        assert out.x[image, count:].eq(0).all()
        assert torch.equal(out.plan.owner[image], alone.plan.owner[0])
        assert out.size[image].sum() == 200


@pytest.mark.parametrize("n", [7, 33, 100, 576, 729])
def test_plus_works_for_any_number_of_tokens(rng, n):
    d = draw(rng, n, batch=3)
    out = sparsight.reduce("prumerge_plus", **d)
    for image, count in enumerate(out.plan.counts):
        a = out.score[image]
        low, high = np.percentile(a.numpy(), [25, 75])
        top = a.sort(descending=True, stable=True).indices[: int((a > high + 1.5 * (high - low)).sum())].tolist()
        stride = max(1, int(int(n / max(1, len(top))) / 3))
        centres = top + [p for p in range(0, n - 1, stride) if p not in top]
        assert out.plan.keep[image, : count - 1].tolist() == centres


def test_plus_with_a_budget_spaces_the_rest_evenly(rng):
    out = sparsight.reduce("prumerge_plus:tokens=80", **draw(rng, 300, batch=4))
    assert out.plan.keep.shape == (4, 80)
    for image in range(4):
        keep = out.plan.keep[image].tolist()
        assert len(set(keep)) == 80
        found = next((i for i in range(1, 80) if keep[i:] == sorted(keep[i:])), 80)
        gaps = np.diff(keep[found:])
        assert gaps.max() - gaps.min() < 10
        assert keep[-1] > 290  # not cut at the image's end


def test_fixed_counts_forgive_float_error(rng):
    d = draw(rng, 100)
    assert [sparsight.reduce(f"prumerge:keep={k}", **d).plan.keep.shape[1] for k in (0.29, 0.57, 0.58, 0.126)] == [29, 57, 58, 12]
    assert sparsight.reduce("prumerge:tokens=5", **draw(rng, 20)).x.shape[1] == 6  # fewer than 32 neighbours


def test_exchanged_scores_keep_the_class_weights(rng):
    d = draw(rng, 60)
    wide = {key: d[key].transpose(1, 2).flatten(2) for key in ("q", "k")}
    matrix = (wide["q"] @ wide["k"].transpose(1, 2) * 16**-0.5).softmax(-1)
    out = sparsight.reduce("prumerge:tokens=9,score=col_ln", **d)
    assert torch.allclose(out.score, matrix[:, 1:, 1:].square().sum(1).sqrt(), atol=1e-5)
    rest = torch.ones(60).scatter(0, out.plan.keep[0], 0)
    assert torch.allclose(out.x[0, -1], (matrix[0, 0, 1:] * rest) @ d["x"][0], atol=1e-5)


def test_rescue_takes_col_ln_among_what_attention_leaves(rng):
    d = draw(rng, 60)
    s = sparsight.reduce("prumerge:tokens=10", **d).score[0]
    norm = sparsight.reduce("prumerge:tokens=10,score=col_ln", **d).score[0]
    ranked = s.sort(descending=True).indices.tolist()
    rest = sorted(ranked[2:], key=lambda i: -norm[i])[:8]
    assert sparsight.reduce("prumerge:tokens=10,rescue=0.8", **d).plan.keep[0].tolist() == ranked[:2] + rest


def test_encoders_without_class_token(rng):
    d = {key: value[:, :, 1:] if key != "x" else value for key, value in draw(rng, 50).items()}
    assert sparsight.reduce("prumerge:tokens=9,score=column_mean", **d).x.shape[1] == 10
    with pytest.raises(PruneError, match="column_mean"):
        sparsight.reduce("prumerge:tokens=9", **d)


def test_keep_all_changes_nothing(rng):
    d = draw(rng, 40)
    for name in ("prumerge:keep=1", "prumerge_plus:tokens=40", "prumerge_plus:keep=1,spacing=training"):
        assert torch.equal(sparsight.reduce(name, **d).x, d["x"])


@pytest.mark.parametrize(
    ("recipe", "fix"),
    [
        ("prumerge:rescue=2", "share"),
        ("prumerge:rescue=0.5,score=col_ln", "leave out"),
        ("prumerge_plus:spacing=training", "give a budget"),
    ],
)
def test_bad_numbers(rng, recipe, fix):
    with pytest.raises(PruneError, match=fix):
        sparsight.reduce(recipe, **draw(rng, 40))
