"""VisionZip against dvlab-research/VisionZip 3151f6d."""

import pytest
import torch

import sparsight
from sparsight.errors import PruneError


def signals(rng, n: int = 50, batch: int = 2) -> dict[str, torch.Tensor]:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    return {
        "x": draw(batch, n, 12),
        "class_token": draw(batch, 1, 12),
        "class_attn": draw(batch, 3, n).softmax(-1),
        "q": draw(batch, 3, n + 1, 6),
        "k": draw(batch, 3, n + 1, 6),
    }


@pytest.mark.parametrize("name", ["N100_d14_c3_seed0", "N576_d54_c10_seed0", "N576_d162_c30_seed0"])
def test_tokens_and_plan(vlm, name):
    d = vlm(f"visionzip_{name}")
    hidden, dominant, contextual = d["hidden_states"], int(d["dominant_num"]) + 1, int(d["contextual_num"])
    recipe = f"visionzip:tokens={dominant + contextual},contextual={contextual}"
    a, k = d["cls_attn_row"][:, :, 1:], d["metric"].unsqueeze(1)
    out = sparsight.reduce(recipe, x=hidden[:, 1:], class_token=hidden[:, :1], class_attn=a, k=k)
    assert torch.allclose(out.x, d["out_tokens"], atol=1e-4)
    keep = torch.cat([d["dominant_positions"][:, 1:], d["target_positions"]], dim=1) - 1
    assert torch.equal(out.plan.keep, keep)
    assert out.plan.led
    assert out.plan.slots == out.x.shape[1]
    # who joined whom: slots of merge targets, in the order of the tokens that are neither dominant nor targets
    joined = torch.ones_like(out.plan.owner, dtype=torch.bool).scatter(1, keep, False)
    assert torch.equal(out.plan.owner[joined].view(len(keep), -1) - dominant, d["assign"].long())
    assert torch.equal(out.size[:, dominant:, 0] - 1, d["counts"])


def test_sizes_add_up(rng):
    out = sparsight.reduce("visionzip:tokens=12,contextual=3", **signals(rng))
    assert out.size.sum(dim=1).flatten().tolist() == [50, 50]
    assert out.size[:, 0].eq(0).all()  # the class token stands for no patch
    assert torch.equal(out.plan.owner.sort(dim=1).values[:, :8], torch.arange(1, 9).expand(2, 8))


def test_paper_split_is_the_default(rng):
    def split(recipe: str) -> list[int]:
        sizes = sparsight.reduce(recipe, **signals(rng, 576)).size[0, :, 0]
        return [len(sizes), int((sizes > 1).sum())]

    assert [split(f"visionzip:tokens={k}") for k in (192, 128, 64, 32)] == [[192, 30], [128, 20], [64, 10], [32, 5]]


def test_without_class_token_in_spatial_order(rng):
    d = signals(rng)
    d.pop("class_token")
    d.pop("class_attn")
    out = sparsight.reduce("visionzip:tokens=12,contextual=3,score=column_mean", **d)
    assert out.x.shape[1] == 12
    assert not out.plan.led
    assert torch.equal(out.plan.keep, out.plan.keep.sort(dim=1).values)
    alone = out.size.squeeze(-1) == 1
    assert alone.sum() >= 18
    assert torch.equal(out.x[alone], out.plan.gather(d["x"])[alone])


def test_keep_all_changes_nothing(rng):
    d = signals(rng)
    out = sparsight.reduce("visionzip:keep=1", **d)
    assert torch.equal(out.x, d["x"])
    no_merging = sparsight.reduce("visionzip:tokens=20,contextual=0", **d)
    assert torch.equal(no_merging.x[:, 1:], no_merging.plan.gather(d["x"]))


@pytest.mark.parametrize(
    "recipe", ["visionzip:tokens=10,contextual=10", "visionzip:keep=0.1,contextual=5", "visionzip:contextual=-2"]
)
def test_impossible_split_says_what_to_give(rng, recipe):
    with pytest.raises(PruneError, match=r"needs \d+ or more|give 0 or more"):
        sparsight.reduce(recipe, **signals(rng))


def test_float64_stays_float64(rng):
    """Merging in float32 would differ by 1e-7."""
    d = {name: value.double() for name, value in signals(rng).items()}
    out = sparsight.reduce("visionzip:tokens=12,contextual=3", **d)
    merged = out.plan.owner == out.plan.slots - 1
    itself = out.plan.keep[:, -1]
    for image in range(2):
        joined = merged[image].nonzero().flatten().tolist()
        joined.remove(int(itself[image]))
        expected = d["x"][image, itself[image]] + d["x"][image, joined].mean(dim=0)
        assert torch.allclose(out.x[image, -1], expected, rtol=0, atol=1e-13)
