"""Models inside other modules, LoRA, the meta device, and recipes that do nothing."""

import warnings

import pytest
import timm
import torch
from torch import nn

import sparsight
from sparsight import PruneError

RECIPE = "col_ln:keep=0.5,layers=1/2"


def vit(**options):
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5, **options
    ).eval()


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = vit()
        self.head = nn.Linear(5, 2)


@pytest.mark.parametrize(("module", "path"), [(Classifier, "backbone"), (lambda: nn.Sequential(nn.Identity(), vit()), "1")])
def test_a_model_inside_another_is_named(module, path):
    with pytest.raises(PruneError, match=rf"holds a VisionTransformer: .*get_submodule\('{path}'\)") as error:
        sparsight.prune(module(), RECIPE)
    assert len(str(error.value)) < 200
    sparsight.prune(module().get_submodule(path), RECIPE).remove()


@torch.no_grad()
@pytest.mark.parametrize("first", ["lora", "prune"])
def test_lora(first):
    """Added before or after pruning, the adapters count, in the score as well, and merged they give the same."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["qkv", "proj", "fc1"], init_lora_weights=False)
    model, x = vit(), torch.randn(2, 3, 32, 32)
    if first == "lora":
        model = peft.get_peft_model(model, config)
        handle = sparsight.prune(model, RECIPE)
    else:
        handle = sparsight.prune(model, RECIPE)
        model = peft.get_peft_model(model, config)
    found, kept = model(x), handle.plans[1].keep
    assert handle.counts == [8, 4]
    assert sparsight.handle(model) is handle
    handle.remove()
    merged = model.merge_and_unload()
    with sparsight.prune(merged, RECIPE) as again:
        torch.testing.assert_close(merged(x), found, rtol=1e-4, atol=1e-5)
        assert torch.equal(again.plans[1].keep, kept)


@pytest.mark.parametrize("recipe", [RECIPE, "tome:remove=3", "similarity:keep=0.5,layers=input", "evit:keep=0.5,layers=1"])
def test_on_the_meta_device(recipe):
    model = vit().to("meta")
    with sparsight.prune(model, recipe) as handle:
        assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 5)
        assert handle.counts[-1] < 16


def test_counts_that_only_data_tell_are_refused_on_the_meta_device():
    model = vit().to("meta")
    with sparsight.prune(model, "ats:layers=1"), pytest.raises(PruneError, match="meta device"):
        model(torch.empty(2, 3, 32, 32, device="meta"))


@pytest.mark.parametrize("recipe", ["col_ln:keep=1,layers=1", "tome:remove=0"])
def test_a_recipe_that_does_nothing_is_reported(recipe):
    with pytest.warns(UserWarning, match="removes none of the 16 patches"):
        sparsight.prune(vit(), recipe).remove()


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["evit:tokens=16,layers=1", "resize:tokens=16", "pool:tokens=16,layer=1"])
def test_a_number_of_tokens_is_held_against_the_pictures_that_come(recipe):
    """All patches of a picture of the model's own size, a quarter of those of a larger one; one forward says it, once."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, dynamic_img_size=True
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sparsight.prune(model, recipe):
            model(torch.randn(1, 3, 64, 64))
            model(torch.randn(1, 3, 32, 32))
    with sparsight.prune(model, recipe):
        with pytest.warns(UserWarning, match="removes none of the 16 patches"):
            model(torch.randn(1, 3, 32, 32))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(torch.randn(1, 3, 32, 32))


def test_similarity_before_the_first_block_under_checkpoints():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    grads = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        with sparsight.prune(model.train(), "similarity:keep=0.5,layers=input"):
            model(x).square().sum().backward()
        grads.append(model.patch_embed.proj.weight.grad.clone())
        model.zero_grad()
    torch.testing.assert_close(*grads)
