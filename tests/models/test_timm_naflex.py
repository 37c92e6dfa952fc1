"""NaFlexVit: images of different sizes in one padded batch, each as if it were alone."""

import pytest
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

import sparsight
from sparsight import PruneError

PATCH = 4
KINDS = {
    "avg": {"global_pool": "avg"},
    "token-registers": {"global_pool": "token", "class_token": True, "reg_tokens": 2},
    "map-key-mask": {"global_pool": "map", "use_key_only_attn_mask": True},
    "avgmax-prefix": {"global_pool": "avgmax", "class_token": True, "pool_include_prefix": True},
    "rope": {"rope_type": "axial", "global_pool": "avg", "pos_embed": "none"},
    "rope-mixed": {"rope_type": "mixed", "global_pool": "avg", "pos_embed": "none", "swiglu_mlp": True},
}
RECIPES = (
    "col_ln:keep=0.5,layers=0/2",
    "tome:remove=3,layers=0/1/2",
    "random:keep=0.6,layers=input",
    "renyi:keep=0.4,layers=1,where=block",
)


def build(**options):
    torch.manual_seed(0)
    sizes = {"patch_size": PATCH, "embed_dim": 32, "depth": 3, "num_heads": 2, "pos_embed_grid_size": (6, 6)}
    model = NaFlexVit(NaFlexVitCfg(**{**sizes, **options}), num_classes=5).double().eval()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def patches(*grids, length=0):
    """What timm's collator makes of images of these grids: patches, coordinates, which are real; padding last."""
    length = max(length, *(h * w for h, w in grids))
    x = torch.randn(len(grids), length, PATCH * PATCH * 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    coord, valid = torch.zeros(len(grids), length, 2, dtype=torch.int64), torch.zeros(len(grids), length, dtype=torch.bool)
    for i, (h, w) in enumerate(grids):
        coord[i, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w))
        valid[i, : h * w] = True
        x[i, h * w :] = 0
    return {"patches": x, "patch_coord": coord, "patch_valid": valid}


def alone(batch, i):
    real = batch["patch_valid"][i]
    return {key: value[i : i + 1, real] for key, value in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", KINDS)
def test_image_of_a_padded_batch_equals_the_image_alone(kind, recipe):
    model, batch = build(**KINDS[kind]), patches((4, 5), (2, 6), (5, 4))
    whole = model(batch)
    with sparsight.prune(model, recipe) as handle:
        together, plans = model(batch), handle.plans
        for i in range(3):
            assert torch.allclose(model(alone(batch, i))[0], together[i], rtol=1e-9, atol=1e-9)
            for single, plan in zip(handle.plans, plans, strict=True):
                kept = plan.keep[i][plan.keep[i] >= 0]
                assert single.keep[0].tolist() == kept.tolist()
        assert plans[0].counts[0] == plans[0].counts[2] > plans[0].counts[1]
        assert not torch.allclose(together, whole)
    everything = recipe.replace("keep=0.5", "keep=1").replace("keep=0.6", "keep=1").replace("keep=0.4", "keep=1")
    with sparsight.prune(model, everything.replace("remove=3", "remove=0")):
        torch.testing.assert_close(model(batch), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(batch), whole, rtol=0, atol=1e-12)
    assert not any("_sparsight" in key or key == "_pool" for module in model.modules() for key in vars(module))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["avg", "rope", "token-registers"])
def test_patches_and_pixels_agree(kind):
    """One image as pixels, and the same as patches with coordinates."""
    from timm.models.naflexvit import batch_patchify

    model = build(**KINDS[kind])
    pixels = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    batch = patches((4, 6), (4, 6)) | {"patches": batch_patchify(pixels, (PATCH, PATCH))[0]}
    with sparsight.prune(model, "similarity:keep=0.5,layers=0/1,diversity=1") as handle:
        as_pixels = model(pixels)
        assert handle.grid == (4, 6)
        maps = model.forward_intermediates(pixels, intermediates_only=True)
        assert [m.shape for m in maps] == [(2, 32, 4, 6)] * 3
        as_patches = model(batch)
        assert handle.grid == (4, 6)
    torch.testing.assert_close(as_patches, as_pixels, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_cannot_be_is_said():
    model, batch = build(), patches((4, 5), (2, 6))
    with (
        sparsight.prune(model, "similarity:keep=0.5,layers=0,diversity=1"),
        pytest.raises(PruneError, match="different patch grids"),
    ):
        model(batch)
    with sparsight.prune(model, "col_ln:keep=0.5,layers=0") as handle:
        with pytest.raises(PruneError, match="attention mask"):
            model({**batch, "attn_mask": torch.zeros(2, 1, 20, 20, dtype=torch.float64)})
        with pytest.raises(PruneError, match="padding stands between"):
            model({key: value.flip(1) for key, value in batch.items()})
        model(batch)
        with pytest.raises(PruneError, match="different patch grids"):
            handle.restore(torch.zeros(2, 10, 32, dtype=torch.float64))


def test_a_training_step():
    model, batch = build(drop_path_rate=0.2, **KINDS["rope"]).train(), patches((4, 5), (2, 6))
    with sparsight.prune(model, "col_ln:keep=0.5,layers=0/1"):
        model(batch).square().sum().backward()
    assert model.embeds.proj.weight.grad.abs().max() > 0
