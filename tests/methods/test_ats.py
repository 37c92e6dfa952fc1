"""ATS against adaptivetokensampling/ATS and JoakimHaurum/TokenReduction."""

import pytest
import torch

import sparsight
from sparsight.prune import prune


def kept(plan: sparsight.Plan, image: int) -> list[int]:
    """Positions in the whole sequence, the class token at 0."""
    return [0, *(i + 1 for i in plan.keep[image].tolist() if i >= 0)]


@pytest.mark.parametrize("version", ["official", "tr"])
@pytest.mark.parametrize("file", ["ats_N50_s0", "ats_N197_s0"])
def test_authors_choice(golden, file, version):
    """The authors' K counts the class token: tokens = K - 1."""
    d = golden(f"vit/{file}")
    x = d["v"].transpose(1, 2).flatten(2)[:, 1:]
    for key in [key for key in d if key.endswith("_policy")]:
        k = key.removeprefix("off_K").removesuffix("_policy")
        out = sparsight.reduce(f"ats:tokens={int(k) - 1},version={version}", x=x, class_attn=d["attn_cls"][:, :, 1:], v=d["v"])
        for image in range(2):
            if version == "official":
                expected = sorted(d[f"off_K{k}_token"][image][d[key][image]].tolist())
            else:
                expected = d[f"tr_K{k}_ids"][image][d[f"tr_K{k}_mask"][image]].tolist()
            assert kept(out.plan, image) == expected
            n = out.plan.counts[image]
            assert torch.equal(out.x[image, :n], x[image, out.plan.keep[image, :n]])
            assert not out.x[image, n:].any()


def test_significance_by_hand():
    """Two heads, two values: 0.5 * (3, 4) and 0.1 * (6, 8) have the joined length 5 * sqrt(1 + 4) at equal attention."""
    v = torch.tensor([[[[3.0, 4.0]], [[6.0, 8.0]]]])
    attn = torch.tensor([[[0.5], [0.1]]])
    x = torch.zeros(1, 1, 4)
    official = sparsight.reduce("ats:keep=1", x=x, class_attn=attn, v=v, prefix=0).score
    assert official.item() == pytest.approx(0.6 * 125**0.5)
    assert sparsight.reduce("ats:keep=1,version=tr", x=x, class_attn=attn, v=v, prefix=0).score.item() == pytest.approx(3.5)


@pytest.mark.parametrize("version", ["official", "tr"])
def test_one_token_stands_out(version):
    """The samples of its upper half fall on the one token that holds nearly everything, and those below it on a neighbour or two of
    the sum; with equal scores each sample has its own token."""
    attn = torch.full((1, 1, 16), 1e-6)
    attn[..., 5] = 1
    v = torch.ones(1, 1, 16, 2)
    x = torch.randn(1, 16, 4)
    peak = sparsight.reduce(f"ats:tokens=8,version={version}", x=x, class_attn=attn, v=v, prefix=0).plan
    assert 5 in peak.keep[0].tolist()
    assert peak.counts[0] <= 3
    even = sparsight.reduce(f"ats:keep=1,version={version}", x=x, class_attn=torch.ones_like(attn), v=v, prefix=0).plan
    assert even.counts[0] >= 15


def test_padding_is_not_seen():
    """Per-image counts in, per-image counts out, whatever lies in the padding."""
    generator = torch.Generator().manual_seed(3)
    x, v = torch.randn(2, 20, 4, generator=generator), torch.randn(2, 2, 21, 3, generator=generator)
    q, k = torch.randn(2, 2, 2, 21, 5, generator=generator)
    counts = (20, 13)
    valid = torch.arange(20) < torch.tensor(counts).unsqueeze(1)
    for version in ("official", "tr"):
        recipe = f"ats:tokens=10,version={version}"
        both = sparsight.reduce(recipe, x=x, q=q, k=k, v=v, valid=valid).plan
        for i, n in enumerate(counts):
            one = {"q": q[i : i + 1, :, : n + 1], "k": k[i : i + 1, :, : n + 1], "v": v[i : i + 1, :, : n + 1]}
            alone = sparsight.reduce(recipe, x=x[i : i + 1, :n], **one).plan
            assert kept(both, i) == kept(alone, 0)


def test_more_samples_than_tokens():
    """keep=1 draws as many samples at every block as there were patches, so a later block still finds tokens that it would
    miss with as many samples as it has tokens."""
    schedule = sparsight.parse("ats:layers=3/4").schedule
    assert schedule.count(80, 1, 2, entered=196) == 196
    assert sparsight.parse("ats:keep=0.7,layers=3/6").schedule.count(90, 1, 2, entered=196) == 96
    assert sparsight.parse("ats:remove=50,layers=3/6").schedule.count(90, 1, 2, entered=196) == 96


@torch.no_grad()
def test_in_a_model(shared_block_vit):
    model, x = shared_block_vit(3), torch.randn(3, 50, 96, generator=torch.Generator().manual_seed(0))
    with prune(model, "ats:layers=0/1") as handle:
        out = model.blocks(x)
        first, second = handle.counts
        assert out.shape[1] == 1 + max(second)
        assert all(0 < b <= a < 49 for a, b in zip(first, second, strict=True))
        alone = model.blocks(x[1:2])
        assert handle.counts == [first[1], second[1]]
        torch.testing.assert_close(alone[0], out[1, : 1 + second[1]], rtol=1e-4, atol=1e-5)
