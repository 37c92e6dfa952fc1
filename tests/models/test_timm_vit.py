"""timm's VisionTransformer: pooling by size, what is refused, and the calls around the plain forward."""

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer

import sparsight
from sparsight import PruneError

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}


def vit(**options):
    torch.manual_seed(0)
    return VisionTransformer(**{**SIZES, **options}).double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["tome:remove=4,layers=0/1/2", "evit:keep=0.5,layers=0/2", "col_ln:keep=0.5,layers=1"])
@pytest.mark.parametrize("include_prefix", [False, True], ids=["patches", "with-prefix"])
@pytest.mark.parametrize("kind", ["avg", "avgmax"])
def test_average_pooling_weighs_by_size(x, recipe, include_prefix, kind):
    model = vit(global_pool=kind, pool_include_prefix=include_prefix)
    with sparsight.prune(model, recipe) as handle:
        tokens, logits = model.forward_features(x), model(x)
        size = handle.outcomes[-1].size
    size = torch.ones_like(tokens[:, 1:, :1]) if size is None else size
    assert recipe.startswith("col_ln") or size.max() > 1
    if include_prefix:
        size = torch.cat([torch.ones_like(size[:, :1]), size], dim=1)
    used = tokens if include_prefix else tokens[:, 1:]
    mean = (used * size).sum(1) / size.sum(1)
    pooled = mean if kind == "avg" else 0.5 * (mean + used.amax(1))
    torch.testing.assert_close(model.head(model.fc_norm(pooled)), logits, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_merging_equal_tokens_changes_nothing(x):
    """Proportional attention: two equal tokens and one of size two are the same to everybody else."""
    model = vit(global_pool="avg", class_token=False, pos_embed="none")
    flat = x[:, :, :8, :8].repeat(1, 1, 4, 4)
    with sparsight.prune(model, "tome:remove=8,layers=0/2,proportional=true") as handle:
        pruned = model(flat)
        assert handle.counts == [8, 4]
    torch.testing.assert_close(pruned, model(flat), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_grid_follows_the_image():
    model = vit(dynamic_img_size=True)
    with sparsight.prune(model, "similarity:keep=0.5,diversity=1") as handle:
        assert handle.grid == (4, 4)
        model(torch.randn(1, 3, 48, 24, dtype=torch.float64))
        assert handle.grid == (6, 3)
        assert handle.counts == [9]
        model(torch.randn(1, 3, 24, 32, dtype=torch.float64))
        assert handle.grid == (3, 4)
        assert handle.counts == [6]


@torch.no_grad()
@pytest.mark.parametrize(
    "recipe", ["col_ln:keep=0.25,layers=1", "tome:remove=6,layers=0/2", "evit:keep=0.5,layers=0/1,where=block"]
)
def test_intermediates_fill_the_grid(x, recipe):
    """Maps and lists of every block that is asked for, each value that of the token which stands for the patch."""
    model = vit(reg_tokens=2, no_embed_class=True)
    with sparsight.prune(model, recipe) as handle:
        seen = []
        hooks = [block.register_forward_hook(lambda _m, _a, out: seen.append(out)) for block in model.blocks]
        final, maps = model.forward_intermediates(x, indices=[3, 1])
        assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 2
        assert final.shape[1] == 3 + handle.counts[-1]
        for block, found in zip((1, 3), maps, strict=True):
            torch.testing.assert_close(handle.restore(seen[block], block, as_map=True), found)
            torch.testing.assert_close(handle.restore(seen[block][:, 3:], block - 4, as_map=True), found)
        lists = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True)
        assert [(t.shape[1], p.shape[1]) for t, p in lists] == [(16, 3)] * 4
        torch.testing.assert_close(lists[1][0].mT.reshape(maps[0].shape), maps[0])
        as_dict = model.forward_intermediates(x, indices=1, output_dict=True, norm=True)
        assert as_dict["image_intermediates"][0].shape == (2, 32, 4, 4)
        pair = model.get_intermediate_layers(x, 2, reshape=True)
        assert [p.shape for p in pair] == [(2, 32, 4, 4)] * 2
        for hook in hooks:
            hook.remove()
    assert "forward_intermediates" not in vars(model)


@pytest.mark.parametrize("recipe", ["evit:keep=0.5,layers=0/2", "tome:remove=3,layers=all"])
def test_gradient_checkpointing(x, recipe):
    model = vit().train()
    with sparsight.prune(model, recipe):
        plain = gradients(model, x)
        model.set_grad_checkpointing(True)
        again = gradients(model, x)
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)


def gradients(model, x):
    model.zero_grad(set_to_none=True)
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_masks_are_refused(x):
    model = vit()
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1"):
        for mask in ({"attn_mask": torch.zeros(17, 17, dtype=torch.float64)}, {"is_causal": True}):
            with pytest.raises(PruneError, match="attention mask"):
                model(x, **mask)


def test_blocks_without_a_place_are_refused():
    with pytest.raises(PruneError, match=r"ParallelScalingBlock.*supported: timm's Block"):
        sparsight.prune(vit(block_fn=ParallelScalingBlock), "col_ln:keep=0.5,layers=1")
    with pytest.raises(PruneError, match="ResPostBlock"):
        sparsight.prune(vit(block_fn=ResPostBlock), "col_ln:keep=0.5,layers=1")
    with pytest.raises(PruneError, match="DiffAttention"):
        sparsight.prune(vit(attn_layer="diff"), "col_ln:keep=0.5,layers=1")
    with pytest.raises(PruneError, match="patch_drop_rate"):
        sparsight.prune(vit(patch_drop_rate=0.1), "col_ln:keep=0.5,layers=1")


def test_other_models_are_refused():
    import torchvision

    with pytest.raises(PruneError, match=r"ResNet is no known family; supported: .*timm VisionTransformer.*transformers"):
        sparsight.prune(torchvision.models.resnet18(), "col_ln")
    namesake = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32)
    with pytest.raises(PruneError, match=r"VisionTransformer of torchvision.* is not built like timm"):
        sparsight.prune(namesake, "col_ln:layers=1")
    with pytest.raises(PruneError, match="Linear is no known family"):
        sparsight.prune(torch.nn.Linear(2, 2), "col_ln")
    with pytest.raises(PruneError, match=r"must be a torch.nn.Module"):
        sparsight.prune("vit", "col_ln")


def test_wrappers_say_what_to_prune():
    with pytest.raises(PruneError, match=r"OptimizedModule.*model\._orig_mod"):
        sparsight.prune(torch.compile(vit(), backend="eager"), "col_ln:layers=1")
    with pytest.raises(PruneError, match=r"DataParallel.*model\.module"):
        sparsight.prune(torch.nn.DataParallel(vit()), "col_ln:layers=1")


def test_a_block_patched_by_another_tool_is_left_alone(x):
    model = vit()
    model.blocks[2].forward = model.blocks[2].forward
    with pytest.raises(PruneError, match=r"block 2 .*forward of its own"):
        sparsight.prune(model, "col_ln:keep=0.5,layers=1/2")
    del model.blocks[2].forward
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1/2") as handle:
        model(x)
        assert handle.counts == [8, 4]


def test_a_subclass_is_its_family(x):
    class Mine(VisionTransformer):
        pass

    model = Mine(**SIZES).double().eval()
    with sparsight.prune(model, "evit:keep=0.5,layers=1") as handle:
        model(x)
        assert handle.counts == [9]
        assert type(model) is Mine


@torch.no_grad()
@pytest.mark.parametrize(
    "recipe", ["col_ln:keep=0.5,layers=0/2", "evit:keep=0.5,layers=1", "tome:remove=4,layers=all", "similarity"]
)
def test_channels_last(x, recipe):
    """Image and weights in another memory format: the same tokens, the same logits."""
    model = vit()
    with sparsight.prune(model, recipe if ":" in recipe else f"{recipe}:keep=0.5,layers=1") as handle:
        expected, plans = model(x), [plan.keep for plan in handle.plans]
        found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert all(torch.equal(a, plan.keep) for a, plan in zip(plans, handle.plans, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
