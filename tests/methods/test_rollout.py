"""Rollout against samiraabnar/attention_flow 8044f53 and jacobgil/vit-explain 15a81d3, and inside a model against plain products."""

import pytest
import timm
import torch

import sparsight
from sparsight import PruneError


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize(("residual", "key"), [("true", "abnar_cls"), ("false", "abnar_nores_cls")])
def test_abnar(golden, blocks, residual, key):
    d = golden("vit/rollout_N50_s0")
    attns = d["attn"][:blocks]
    done = sparsight.reduce(f"rollout:keep=0.5,residual={residual}", x=torch.zeros(1, 49, 4), attns=attns)
    torch.testing.assert_close(done.score[0].double(), d[key][blocks - 1], rtol=0, atol=1e-5)
    best = d[key][blocks - 1].sort(descending=True, stable=True).indices[:25].sort().values
    assert torch.equal(done.plan.keep[0], best)
    listed = sparsight.reduce(f"rollout:keep=0.5,residual={residual}", x=torch.zeros(1, 49, 4), attns=[a[None] for a in attns])
    assert torch.equal(listed.score, done.score)


@pytest.mark.parametrize("fuse", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", ["0", "90"])
def test_vit_explain(golden, fuse, discard):
    d = golden("vit/rollout_N50_s0")
    recipe = f"rollout:keep=0.5,fuse={fuse},discard=0.{discard},parity=true"
    score = sparsight.reduce(recipe, x=torch.zeros(1, 49, 4), attns=d["attn"]).score[0]
    torch.testing.assert_close(score / score.max(), d[f"vitexplain_{fuse}_d{discard}"].flatten(), rtol=0, atol=1e-5)


def test_rows_of_survivors_go_on():
    """Three sites in a model; the reference multiplies whole matrices and gathers rows."""
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=5, num_heads=2, num_classes=3, reg_tokens=2
    )
    model = model.double().eval()
    attns = []
    for block in model.blocks:
        block.attn.fused_attn = False
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.4)
        block.attn.attn_drop.register_forward_hook(lambda _m, _a, out: attns.append(out))
    handle = sparsight.prune(model, "rollout:keep=0.6,layers=0/2/3")
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    flow, patches = None, torch.arange(16).expand(2, -1)
    plans = dict(zip(handle.layers, zip(handle.plans, handle.scores, strict=True), strict=True))
    for block, attn in enumerate(attns[:4]):
        mixing = attn.mean(dim=1) + torch.eye(attn.shape[-1], dtype=attn.dtype)
        mixing = mixing / mixing.sum(dim=-1, keepdim=True)
        flow = mixing if flow is None else mixing @ flow
        if block in plans:
            plan, score = plans[block]
            torch.testing.assert_close(score, flow[:, 0, 3:].gather(1, patches), rtol=0, atol=1e-12)
            patches = patches.gather(1, plan.keep)
            rows = plan.keep.unsqueeze(-1).expand(-1, -1, flow.shape[2])
            flow = torch.cat([flow[:, :3], flow[:, 3:].gather(1, rows)], dim=1)
    assert handle.counts == [10, 6, 4]
    assert not handle.engine.states.last().trail, "queries and keys are let go"


def test_refused_where_counts_differ_or_a_class_token_is_missing():
    model = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
    with sparsight.prune(model, "ats:layers=0"), pytest.raises(PruneError, match="a different number of tokens in each image"):
        sparsight.prune(model, "rollout:layers=1")
    plain = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, class_token=False, global_pool="avg"
    )
    with pytest.raises(PruneError, match="no class token"):
        sparsight.prune(plain, "rollout:layers=1")
    with pytest.raises(PruneError, match=r"discard=1 is outside"):
        sparsight.parse("rollout:discard=1")
