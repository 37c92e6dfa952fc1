"""What prune() refuses, before it changes anything, and how options override a recipe."""

import pytest
import timm
import torch

import sparsight
from sparsight.errors import PruneError


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=3).eval()


BAD = {
    "evit:layers=1/4": "out of range: the model has 4 blocks",
    "evit": "out of range",
    "evit:layers=-1": "out of range",
    "evit:layers=1,tokens=17": "tokens=17 is more than the 16 patches",
    "col_ln:layers=input": "needs q, k of a block, but layers=input",
    "evit:layers=input": "needs class_attn",
    "evit:layers=1/2,keep=0.9/0.8/0.7": "3 values for 2 sites",
    "fastervlm:tokens=8": "no language model",
    "visionzip:tokens=8,contextual=2": "no language model",
    "evti:layers=1": "did you mean 'evit'",
}


@pytest.mark.parametrize(("recipe", "message"), BAD.items())
def test_refused_and_untouched(model, recipe, message):
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(PruneError, match=message):
        sparsight.prune(model, recipe)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_options_override_the_recipe(model):
    with sparsight.prune(model, "evit:keep=0.7,layers=1/2", keep=0.5) as handle, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
        assert str(handle.recipe) == "evit:keep=0.5,layers=1/2"
        assert handle.counts == [9, 6]
    with sparsight.prune(model, "evit:keep=0.7,layers=1/2", tokens=5) as handle:
        assert str(handle.recipe) == "evit:tokens=5,layers=1/2"
    with pytest.raises(PruneError, match="no parameter 'kep'"):
        sparsight.prune(model, "evit:layers=1", kep=0.5)


def test_a_handle_prints_as_one_line(model):
    with sparsight.prune(model, "evit:keep=0.5,layers=1/2") as handle, torch.no_grad():
        assert repr(handle) == "<Handle of evit:keep=0.5,layers=1/2: no forward yet>"
        model(torch.randn(1, 3, 32, 32))
        assert str(handle) == "<Handle of evit:keep=0.5,layers=1/2: [9, 6] tokens left>"


def test_a_budget_for_each_site(model):
    with sparsight.prune(model, "random:keep=0.75/0.5,layers=1/2") as handle, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
        assert handle.counts == [12, 6]


def test_wrong_things_are_named(model):
    with pytest.raises(PruneError, match=r"must be a torch\.nn\.Module, got str"):
        sparsight.prune("vit", "evit")
    with pytest.raises(PruneError, match=r"must be a string .* got int"):
        sparsight.prune(model, 3)
    with pytest.raises(PruneError, match=r"Linear is no known family; supported: .*VisionTransformer"):
        sparsight.prune(torch.nn.Linear(2, 2), "evit")
