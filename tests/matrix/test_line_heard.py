"""Blocks as straight lines of operations stand back for whoever looks at their modules or changes them."""

import copy
from contextlib import nullcontext

import pytest
import torch
from lines import COUNTED, assert_same, both
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import DEPTH, images, made, outputs

import sparsight


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def meddle(model, way, patch):
    """Something that the last block's own modules would show."""
    block = model.blocks[DEPTH - 1]
    if way == "hook":
        block.norm2.register_forward_hook(lambda _m, _a, out: out + 1)
    if way == "pre-hook":
        block.mlp.fc1.register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    if way == "hook on the activation":
        block.mlp.act.register_forward_hook(lambda _m, _a, out: out + 1)
    if way == "hook on the attention":
        block.attn.register_forward_hook(lambda _m, _a, out: out.roll(1, -1))
    if way == "forward":
        block.mlp.forward = torch.neg
    if way == "class":
        patch.setattr(type(block.mlp), "forward", lambda _self, x: -x)
    if way == "replaced":
        block.attn.proj = Doubled(*block.attn.proj.weight.shape[::-1], dtype=torch.float64)
    if way == "changed class":
        block.attn.proj.__class__ = Doubled
    if way == "parametrized":
        nn.utils.parametrize.register_parametrization(block.mlp.fc2, "weight", nn.Softplus())
    if way == "training":
        block.attn.proj_drop.train().p = 1.0
    if way == "unfused":
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, _a, out: out * 0.5)


@torch.no_grad()
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "way",
    [
        "hook",
        "pre-hook",
        "hook on the activation",
        "hook on the attention",
        "forward",
        "class",
        "replaced",
        "changed class",
        "parametrized",
        "training",
        "unfused",
    ],
)
def test_whoever_changes_a_module_is_heard(way, before, taken, monkeypatch):
    """Whether it happens before the model is pruned or after."""
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)), images(name)
    untouched = outputs(name, model, x)
    if before:
        meddle(model, way, monkeypatch)
    with sparsight.prune(model, COUNTED):
        if not before:
            outputs(name, model, x)
            assert model.blocks[DEPTH - 1] in taken
            meddle(model, way, monkeypatch)
        taken.clear()
        found = outputs(name, model, x)
        assert model.blocks[DEPTH - 1] not in taken
        assert len(taken) == (0 if way == "class" else DEPTH - 1)
        assert_same(*both(name, model, x))
    assert not torch.equal(found["logits"], untouched["logits"])


class Cubed(nn.GELU):
    def forward(self, x):
        return super().forward(x) ** 3


@torch.no_grad()
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("way", ["tanh", "approximate", "forward", "subclass", "other"])
def test_activations_are_the_models_own(way, after, taken):
    """Plain GELU runs in place, and any other one as it is; whether it was put there before the model was pruned or after."""
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)), images(name)
    untouched = outputs(name, model, x)["logits"]
    ways = {"tanh": nn.GELU("tanh"), "subclass": Cubed(), "other": nn.SiLU()}

    def change():
        if way == "forward":
            model.blocks[0].mlp.act.forward = torch.neg
        elif way == "approximate":
            model.blocks[0].mlp.act.approximate = "tanh"
        else:
            model.blocks[0].mlp.act = ways[way].eval()

    if not after:
        change()
    with sparsight.prune(model, COUNTED):
        if after:
            change()
        found, plain = both(name, model, x)
        assert (model.blocks[0] in taken) == (not after or way == "approximate")
    assert_same(found, plain)
    assert not torch.equal(found["logits"], untouched)


@pytest.mark.parametrize("way", ["gradients", "autocast", "counter", "global hook", "subclass"])
def test_stands_back_for_the_call(way, taken):
    name, heard = "timm-token", []
    model, x = copy.deepcopy(made(name)), images(name)
    if way == "subclass":
        x = x.as_subclass(type("Other", (torch.Tensor,), {}))
    with sparsight.prune(model, COUNTED) as handle, torch.set_grad_enabled(way == "gradients"):
        if way == "global hook":
            hook = nn.modules.module.register_module_forward_hook(lambda module, _a, _o: heard.append(module))
            model(x)
            hook.remove()
            assert model.blocks[DEPTH - 1].norm2 in heard
        elif way == "counter":
            with FlopCounterMode(display=False):
                model(x)
        else:
            with torch.autocast("cpu", enabled=way == "autocast"):
                out = model(x)
            assert out.requires_grad == (way == "gradients")
        assert taken == []
        assert not handle.family.lines.found


@pytest.mark.parametrize("way", ["gradients", "autocast", "counter"])
def test_stands_back_in_the_middle_of_a_forward(way, taken):
    """The first blocks run in inference, the others are watched: as where only the last blocks learn."""
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)), images(name)
    with sparsight.prune(model, COUNTED):
        with torch.no_grad():
            expected = outputs(name, model, x)["logits"]
            taken.clear()
            tokens = model._pos_embed(model.patch_embed(x))
            for block in model.blocks[:2]:
                tokens = block(tokens)
        assert taken == list(model.blocks[:2])
        counter = FlopCounterMode(display=False) if way == "counter" else nullcontext()
        with torch.set_grad_enabled(way == "gradients"), torch.autocast("cpu", enabled=way == "autocast"), counter:
            for block in model.blocks[2:]:
                tokens = block(tokens)
            found = model.forward_head(model.norm(tokens))
        assert taken == list(model.blocks[:2])
    near = 0.1 if way == "autocast" else 1e-9
    torch.testing.assert_close(found.detach(), expected, rtol=near, atol=near, check_dtype=False)
    assert found.requires_grad == (way == "gradients")


@torch.no_grad()
def test_other_attention_of_transformers_is_left_whole(taken):
    model = copy.deepcopy(made("vit"))
    with sparsight.prune(model, COUNTED):
        found = outputs("vit", model, images("vit"))
        assert len(taken) == DEPTH
        taken.clear()
        model.set_attn_implementation("eager")
        torch.testing.assert_close(outputs("vit", model, images("vit")), found, rtol=1e-5, atol=1e-5)
        assert taken == []
        attentions = model(pixel_values=images("vit"), output_attentions=True).attentions
    assert [tuple(attention.shape[-2:]) for attention in attentions] == [(17, 17), (17, 17), (9, 9), (5, 5)]


@torch.no_grad()
def test_blocks_called_by_themselves_are_looked_at(taken):
    """What the start of a forward has found holds for that forward only, also where it ends before the last block."""
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)), images(name)
    with sparsight.prune(model, COUNTED) as handle:
        model.forward_intermediates(x, indices=[1], stop_early=True)
        assert list(handle.family.lines.found) == [2, 3]
        tokens = torch.randn(2, 5, 32, dtype=torch.float64)
        block = model.blocks[3]
        expected = block(tokens)
        assert taken[-1] is block
        hook = block.mlp.register_forward_hook(lambda _m, _a, out: out * 0)
        model.forward_intermediates(x, indices=[1], stop_early=True)
        hook.remove()
        torch.testing.assert_close(block(tokens), expected, rtol=1e-9, atol=1e-9)
        for number in (2, 3):
            model.forward_intermediates(x, indices=[1], stop_early=True)
            del taken[:]
            model.blocks[number].norm2.register_forward_hook(lambda _m, _a, out: out * 0)
            model.blocks[number](tokens)
            assert taken == []
