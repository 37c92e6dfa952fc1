"""TCA against Jo-wang/TCA 0f846d6, in a real model with the authors' block, with and without the class-token cache."""

import pytest
import timm
import torch
from torch import nn

import sparsight
from sparsight import PruneError
from sparsight.ops import cluster


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.fixture
def block_model(golden):
    """One block of CLIP's kind with the golden weights."""
    norm = lambda width, **_: nn.LayerNorm(width, eps=1e-5)  # noqa: E731
    model = timm.models.VisionTransformer(
        img_size=28, patch_size=4, embed_dim=96, num_heads=6, depth=1, num_classes=0, qkv_bias=True, norm_layer=norm
    ).eval()
    model.blocks[0].load_state_dict(golden("vit/block_weights_C96_H6"))
    model.blocks[0].mlp.act = QuickGELU()
    return model


def given_first(handle: sparsight.Handle, first: torch.Tensor) -> None:
    """Let the authors' first centre reach the site."""
    site = handle.sites[0]
    run = site.run
    site.run = lambda count, given: run(count, {**given, "first": first})


@pytest.mark.parametrize("tag", ["d10_c0", "d10_c1", "d20_c0", "d20_c1"])
def test_block(golden, block_model, tag):
    d = golden("vit/tca_block_N50_s0")
    cached = tag.endswith("c1")
    recipe = f"tca:keep={1 - int(tag[1:3]) / 100},layers=0" + (",cache=10" if cached else "")
    handle = sparsight.prune(block_model, recipe, weights={"cache": d["cache"]} if cached else None)
    given_first(handle, d[f"{tag}_first_center"])
    with torch.no_grad():
        out = block_model.blocks(d["x"].transpose(0, 1))
    order = d[f"{tag}_idx"].argsort(dim=1)
    alone = order.shape[1]
    expected = d[f"{tag}_out"].transpose(0, 1)
    kept = expected[:, 1 : 1 + alone].gather(1, order.unsqueeze(-1).expand(-1, -1, 96))
    assert torch.equal(handle.plans[0].keep[:, :alone], d[f"{tag}_idx"].gather(1, order))
    torch.testing.assert_close(out, torch.cat([expected[:, :1], kept, expected[:, 1 + alone :]], dim=1), rtol=0, atol=1e-5)
    assert handle.outcomes[0].size.sum() == 49


def test_coreset(golden):
    d = golden("vit/tca_coreset_s0")
    x = d["token"].transpose(0, 1)
    _, member, weight = cluster.coreset(x, d["first"], 4)
    mix = weight.unsqueeze(1).where(member.unsqueeze(1) == torch.arange(4)[:, None], 0)
    torch.testing.assert_close(mix @ x, d["out"].transpose(0, 1), rtol=0, atol=1e-5)


def test_another_score_chooses_and_class_attention_weighs_the_rest(rng):
    x, q, k = torch.randn(2, 40, 8, generator=rng), *torch.randn(2, 2, 3, 41, 8, generator=rng)
    done = sparsight.reduce("tca:keep=0.8,score=col_ln", x=x, q=q, k=k)
    best = sparsight.reduce("col_ln:tokens=14", x=x, q=q, k=k)
    assert torch.equal(done.plan.keep[:, :14], best.plan.keep)
    class_attn = (q[:, :, :1] @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)[:, :, 0, 1:].mean(dim=1)
    rest = done.plan.owner == done.plan.slots - 1
    expected = (class_attn.where(rest, 0).unsqueeze(-1) * x).sum(dim=1)
    torch.testing.assert_close(done.x[:, -1], expected)
    rescued = sparsight.reduce("tca:keep=0.8,rescue=1", x=x, q=q, k=k)
    assert torch.equal(rescued.plan.keep[:, :14], best.plan.keep)


def test_cache_trains_and_goes_with_the_handle(rng):
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=3, reg_tokens=1
    )
    x = torch.randn(2, 3, 32, 32, generator=rng)
    before = model.eval()(x)
    with sparsight.prune(model, "tca:layers=1/2,cache=3", weights="random") as handle:
        model(x).sum().backward()
        assert handle.counts == [49, 40]
        assert all(site.cache.grad.abs().sum() > 0 for site in handle.learned)
    assert torch.equal(model(x), before)


def test_refused():
    x, a = torch.randn(1, 40, 8), torch.rand(1, 40)
    with pytest.raises(PruneError, match="keeping 20 of 40 tokens condenses 42"):
        sparsight.reduce("tca:keep=0.5", x=x, class_attn=a)
    eva = timm.models.eva.Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, use_rot_pos_emb=True)
    with pytest.raises(PruneError, match="has no position for"):
        sparsight.prune(eva, "tca:layers=1,cache=3", weights="random")
    for recipe in ("tca:centres=0", "tca:cache=-1", "tca:rescue=0.5,score=col_ln", "tca:rescue=2"):
        with pytest.raises(PruneError):
            sparsight.parse(recipe)
