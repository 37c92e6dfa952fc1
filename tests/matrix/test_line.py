"""Blocks as straight lines of operations: the same result as through their modules, from the weights as they are."""

import copy

import pytest
import torch
from copies import copied
from lines import COUNTED, MERGING, STRAIGHT, assert_same, both
from torch import nn
from zoo import DEPTH, ZOO, images, made, outputs

import sparsight

OTHERS = [
    *("timm-gated", "timm-unfused", "timm-relpos", "timm-naflex", "timm-eva02-post", "timm-perception"),
    *("vit-model-eager", "beit", "clip-projection-eager", "openclip-custom-avg"),
]
TAPPED = "evit:keep=0.5,layers=1"


@torch.no_grad()
@pytest.mark.parametrize("text", [COUNTED, TAPPED, MERGING, "rollout:keep=0.5,layers=2", "similarity:keep=0.6,layers=input"])
@pytest.mark.parametrize("name", STRAIGHT)
def test_same_as_through_the_modules(name, text, taken):
    if text.startswith(("evit", "rollout")) and not ZOO[name].class_token:
        pytest.skip("no class token")
    with sparsight.prune(made(name), text) as handle:
        found, plain = both(name, made(name), images(name))
        assert len(taken) == DEPTH
        assert handle.counts
    assert_same(found, plain)


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_other_blocks_run_as_they_are(name, taken):
    with sparsight.prune(made(name), COUNTED):
        outputs(name, made(name), images(name))
    assert taken == []


@torch.no_grad()
def test_modules_are_not_called():
    """The point of it: of a block without a site nothing is called, but its activation if that is not the plain GELU."""
    model = copy.deepcopy(made("timm-layerscale"))
    last, other = model.blocks[DEPTH - 1], model.blocks[0]
    other.mlp.act = nn.SiLU().eval()
    with sparsight.prune(model, COUNTED):
        called, real = [], nn.Module._call_impl
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                nn.Module, "__call__", lambda module, *args, **kwargs: (called.append(module), real(module, *args, **kwargs))[1]
            )
            model(images("timm-layerscale"))
    for block, expected in ((last, [last]), (other, [other, other.mlp.act])):
        assert [module for module in block.modules() if any(module is found for found in called)] == expected


@torch.no_grad()
@pytest.mark.parametrize("way", ["copy_", "data", "load_state_dict", "new parameters"])
def test_changed_weights_are_seen(way):
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)), images(name)
    with sparsight.prune(model, COUNTED):
        before = outputs(name, model, x)
        for module in model.blocks[DEPTH - 1].modules():
            for key, parameter in list(module._parameters.items()):
                if way == "copy_":
                    parameter.mul_(0.5)
                if way == "data":
                    parameter.data *= 0.5
                if way == "load_state_dict":
                    module.load_state_dict({key: parameter * 0.5}, strict=False)
                if way == "new parameters":
                    setattr(module, key, nn.Parameter(parameter * 0.5))
        found, plain = both(name, model, x)
    assert_same(found, plain)
    assert not torch.allclose(found["logits"], before["logits"])


@torch.no_grad()
@pytest.mark.parametrize("way", ["deepcopy", "saved"])
def test_copies_run_along_lines_of_their_own(way, taken):
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)), images(name)
    sparsight.prune(model, COUNTED)
    expected = outputs(name, model, x)
    other = copied(model, way)
    for parameter in model.parameters():
        parameter.zero_()
    taken.clear()
    assert_same(outputs(name, other, x), expected)
    assert [block in other.blocks for block in taken] == [True] * DEPTH
    other.blocks[0].mlp.fc1.weight.zero_()
    assert_same(*both(name, other, x))


@torch.no_grad()
def test_a_block_of_another_tool_is_left_alone(taken):
    """It is no site's, so nothing has to change in it."""
    model = copy.deepcopy(made("timm-token"))
    model.blocks[3].forward = lambda x, **_: -x
    handle = sparsight.prune(model, COUNTED)
    model(images("timm-token"))
    assert len(taken) == DEPTH - 1
    handle.remove()
    assert [i for i, block in enumerate(model.blocks) if "forward" in block.__dict__] == [3]
    assert not any("_sparsight" in module.__dict__ for module in model.modules())


@torch.inference_mode()
def test_lines_use_packed_weights():
    from sparsight.models._kernel import kernel

    if kernel() is None:
        pytest.skip("this torch has no packed product")
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)).float(), images(name, 1).float()
    with sparsight.prune(model, COUNTED) as handle:
        plain = both(name, model, x)[1]
        for _ in range(2):
            found = outputs(name, model, x)
        layers = [model.patch_embed.proj, *(m for m in model.blocks.modules() if isinstance(m, nn.Linear))]
        assert handle.packed == sum(m.weight.nbytes for m in layers)
        torch.testing.assert_close(found["logits"], plain["logits"], rtol=1e-4, atol=1e-5)
