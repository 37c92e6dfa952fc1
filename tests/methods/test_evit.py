"""EViT and its class-attention score against youweiliang/evit 5ca95a7."""

import math

import pytest
import torch

import sparsight

RATES = {"k90": 0.9, "k70": 0.7, "k50": 0.5}


def spatial(idx: torch.Tensor) -> torch.Tensor:
    return idx.long().sort(dim=1).values


@pytest.mark.parametrize("tag", RATES)
def test_kept_set_and_fused_token(golden, tag):
    d = golden("vit/evit_block_N50_s0")
    x = d["x"][:, 1:]
    out = sparsight.reduce(f"evit:keep={RATES[tag]}", x=x, class_attn=d["cls_attn"])
    assert torch.equal(out.plan.keep, spatial(d[f"{tag}_idx"]))
    assert torch.equal(out.plan.dropped(), d[f"{tag}_compl"].long())
    # the golden token is of the block's middle; here the weights are what is compared, on the block's input
    weights = d["cls_attn"].gather(1, out.plan.dropped())
    fused = (weights.unsqueeze(-1) * x.gather(1, out.plan.dropped().unsqueeze(-1).expand(-1, -1, 96))).sum(1)
    assert torch.allclose(out.x[:, -1], fused, atol=1e-5)
    assert out.size[:, -1].eq(x.shape[1] - out.plan.keep.shape[1]).all()


@pytest.mark.parametrize("tag", RATES)
@pytest.mark.parametrize(("name", "key"), [("evit", "fuse"), ("class_attention", "nofuse")])
def test_block_output(golden, shared_block_vit, tag, name, key):
    """One pruned block inside a real model: the same tokens as the authors' block, in ascending order."""
    d = golden("vit/evit_block_N50_s0")
    model = shared_block_vit(1)
    handle = sparsight.prune(model, f"{name}:keep={RATES[tag]},layers=0")
    with torch.no_grad():
        out = model.blocks(d["x"])
    keep = d[f"{tag}_idx"].long()
    order = keep.argsort(dim=1)
    golden_out = d[f"{tag}_{key}_out"]
    kept = golden_out[:, 1 : 1 + keep.shape[1]].gather(1, order.unsqueeze(-1).expand(-1, -1, 96))
    assert torch.equal(handle.plans[0].keep, spatial(keep))
    assert torch.allclose(out[:, 0], golden_out[:, 0], atol=1e-5)
    assert torch.allclose(out[:, 1 : 1 + keep.shape[1]], kept, atol=1e-5)
    if key == "fuse":
        assert torch.allclose(out[:, -1], golden_out[:, -1], atol=1e-5)


def test_chain_counts_fused_token(golden, shared_block_vit):
    """Two stages: the fused token of the first is counted and scored at the second."""
    d = golden("vit/evit_block_N50_s0")
    model = shared_block_vit(2)
    handle = sparsight.prune(model, "evit:keep=0.7,layers=0/1")
    with torch.no_grad():
        out = model.blocks(d["x"])
    assert handle.counts == d["chain_n"].tolist()
    assert handle.counts[1] == math.ceil(0.7 * handle.counts[0]) + 1
    # order-free: each golden token has an equal among ours and the other way round
    distance = torch.cdist(out.double(), d["chain_out2"].double())
    assert distance.min(dim=1).values.max() < 1e-4
    assert distance.min(dim=2).values.max() < 1e-4


def test_keep_all_makes_no_fused_token():
    x = torch.randn(2, 9, 4)
    out = sparsight.reduce("evit:keep=1", x=x, class_attn=torch.rand(2, 9))
    assert torch.equal(out.x, x)
    assert not out.plan.fused


def test_ties_go_to_the_lower_index():
    out = sparsight.reduce("class_attention:tokens=4", x=torch.randn(1, 64, 4), class_attn=torch.zeros(1, 3, 64))
    assert out.plan.keep.tolist() == [[0, 1, 2, 3]]


QK = dict(zip("qk", torch.randn(2, 2, 3, 41, 8, generator=torch.Generator().manual_seed(0)), strict=True))
X = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("option", "other"), [("score=col_ln,order=3", "col_ln:keep=0.6,order=3"), ("rescue=0.8", "col_ln_rescue:keep=0.6")]
)
def test_col_ln_chooses_and_class_attention_weighs_the_fused_token(option, other):
    done = sparsight.reduce(f"evit:keep=0.6,{option}", x=X, **QK)
    assert torch.equal(done.plan.keep, sparsight.reduce(other, x=X, **QK).plan.keep)
    weight = sparsight.reduce("class_attention", x=X, **QK).score.gather(1, done.plan.dropped())
    rest = X.gather(1, done.plan.dropped().unsqueeze(-1).expand(-1, -1, 8))
    torch.testing.assert_close(done.x[:, -1], (weight.unsqueeze(-1) * rest).sum(dim=1))


def test_fused_by_the_other_score():
    done = sparsight.reduce("evit:keep=0.6,score=col_ln,fuse=score", x=X, **QK)
    weight = sparsight.reduce("col_ln", x=X, **QK).score.gather(1, done.plan.dropped())
    rest = X.gather(1, done.plan.dropped().unsqueeze(-1).expand(-1, -1, 8))
    torch.testing.assert_close(done.x[:, -1], (weight.unsqueeze(-1) * rest).sum(dim=1))
    with pytest.raises(sparsight.PruneError, match="leave out score=col_ln or rescue"):
        sparsight.parse("evit:score=col_ln,rescue=0.8")
