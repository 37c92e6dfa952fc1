"""Recorded blocks of timm's Eva and of open_clip: rotary tables come from the loop, weights lie beside their layers."""

import pytest
import torch
from copies import copied
from recordings import WARM, one_by_one, single
from torch import nn
from zoo import DEPTH, outputs

import sparsight
from sparsight import PruneError
from sparsight.models._kernel import kernel
from sparsight.prune import family_of

pytestmark = pytest.mark.skipif(kernel() is None, reason="this torch has no packed product")

RECIPE = "col_ln:keep=0.5,layers=1/2"


def warmed(name):
    """The pruned image tower of a model whose next forward replays, and an image of it."""
    model, x = single(name)
    sparsight.prune(model, RECIPE)
    for _ in range(WARM):
        outputs(name, model, x)
    return family_of(model).model, x


@torch.inference_mode()
@pytest.mark.parametrize("name", ["timm-dinov3", "timm-eva02", "dinov3"])
def test_tables_are_inputs(name, replays):
    """Other positions for as many patches."""
    tower, x = warmed(name)
    before, _ = outputs(name, tower, x), replays.clear()
    rope = tower.rope_embeddings if name == "dinov3" else tower.rope
    call = "forward" if name == "dinov3" else "get_embed"
    real = getattr(rope, call)
    setattr(rope, call, lambda *given, **named: torch.utils._pytree.tree_map(lambda table: table.flip(0), real(*given, **named)))
    found = outputs(name, tower, x)
    assert len(replays) == 1
    with one_by_one():
        expected = outputs(name, tower, x)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not any(torch.equal(found[key], before[key]) for key in expected)


def through_own_loop(tower, x):
    """The features of timm's Eva for somebody who calls its blocks himself, and what is between."""
    x, rope = tower._pos_embed(tower.patch_embed(x))
    seen = [tower.norm_pre(x)]
    for block in tower.blocks:
        seen.append(block(seen[-1], rope=rope))
    return tower.norm(seen[-1]), seen


@torch.inference_mode()
@pytest.mark.parametrize("way", ["own loop", "features", "own features", "intermediates"])
def test_only_in_the_models_own_forward(way, replays):
    tower, x = warmed("timm-dinov3")
    expected, _, seen = tower(x), replays.clear(), []
    if way == "own loop":
        features, seen = through_own_loop(tower, x)
        found = tower.forward_head(features)
    elif way == "features":
        found = tower.forward_head(tower.forward_features(x))
    elif way == "own features":
        tower.forward_features = lambda x, **_: (seen.extend(through_own_loop(tower, x)[1]), tower.norm(seen[-1]))[1]
        found = tower(x)
    else:
        found = tower.forward_head(tower.forward_intermediates(x)[0])
    assert torch.equal(found, expected)
    assert len({float(state.abs().sum()) for state in seen}) == (DEPTH + 1 if seen else 0)
    assert not replays


@torch.inference_mode()
def test_loops_of_open_clip(replays):
    tower, x = warmed("openclip")
    expected, _ = tower(x), replays.clear()
    found = tower.forward_intermediates(x, indices=[0, 1, 2, 3])
    assert len({float(state.abs().sum()) for state in found["image_intermediates"]}) == DEPTH
    assert torch.equal(found["image_features"], expected)
    tokens = torch.randn(1, 17, 32)
    blocks = tower.transformer.resblocks
    assert not torch.equal(tower.transformer(tokens), blocks[0](tokens))
    assert not replays
    tower(x)
    assert len(replays) == 1


@torch.inference_mode()
@pytest.mark.parametrize("name", ["timm-dinov3", "openclip"])
def test_masks_are_refused_as_before(name, replays):
    tower, x = warmed(name)
    replays.clear()
    mask = torch.zeros(17 if name == "openclip" else 21, 17 if name == "openclip" else 21)
    with pytest.raises(PruneError, match="attention mask"):
        tower(x, attn_mask=mask) if name != "openclip" else tower.transformer(torch.randn(1, 17, 32), attn_mask=mask)
    assert not replays


WAYS = {
    "scale": lambda b: b.gamma_1.mul_(2),
    "another scale": lambda b: setattr(b, "gamma_2", nn.Parameter(b.gamma_2 + 1)),
    "no scale": lambda b: setattr(b, "gamma_1", None),
    "bias of q": lambda b: b.attn.q_bias.add_(1),
    "another bias of v": lambda b: setattr(b.attn, "v_bias", nn.Parameter(b.attn.v_bias + 1)),
    "bias of k": lambda b: setattr(b.attn, "k_bias", torch.randn_like(b.attn.k_bias)),
    "weight": lambda b: b.attn.qkv.weight.mul_(2),
    "eps": lambda b: setattr(b.norm1, "eps", 1.0),
    "not fused": lambda b: setattr(b.attn, "fused_attn", False),
    "hook": lambda b: b.register_forward_hook(lambda _m, _a, out: out.roll(1, -1)),
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_whoever_changes_a_block_is_heard(way, replays):
    """In place what a recording reads is changed for it too; whatever is replaced ends it."""
    tower, x = warmed("timm-dinov3")
    before, _ = tower(x), replays.clear()
    WAYS[way](tower.blocks[DEPTH - 1])
    found = tower(x)
    with one_by_one():
        torch.testing.assert_close(found, tower(x))
    if way != "not fused":
        assert not torch.equal(found, before)
    assert len(replays) == (way in ("scale", "bias of q"))


@torch.no_grad()
def test_a_new_scale_is_seen(replays):
    tower, x = warmed("timm-eva02")
    before, _, block = tower(x), replays.clear(), tower.blocks[DEPTH - 1]
    assert block.gamma_2 is None
    del block.gamma_2
    block.gamma_2 = nn.Parameter(torch.full((32,), 2.0))
    found = tower(x)
    assert not torch.equal(found, before)
    family = family_of(tower)
    lines, family.lines = family.lines, type(family.lines)()
    torch.testing.assert_close(found, tower(x))
    family.lines = lines
    assert not replays


@torch.no_grad()
@pytest.mark.parametrize("way", ["weight", "bias", "another weight", "out_proj"])
def test_weights_of_torchs_attention_are_seen(way):
    tower, x = warmed("openclip")
    before, a = tower(x), tower.transformer.resblocks[DEPTH - 1].attn
    if way == "weight":
        a.in_proj_weight.mul_(2)
    elif way == "bias":
        a.in_proj_bias.add_(1)
    elif way == "another weight":
        a.in_proj_weight = nn.Parameter(a.in_proj_weight * 2)
    else:
        a.out_proj.weight.mul_(2)
    for _ in range(3):
        found = tower(x)
        with one_by_one():
            torch.testing.assert_close(found, tower(x))
        assert not torch.equal(found, before)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["timm-dinov3", "openclip"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_have_weights_of_their_own(name, way, replays):
    tower, x = warmed(name)
    expected = tower(x)
    twin = copied(tower, way)
    for parameter in tower.parameters():
        parameter.zero_()
    replays.clear()
    torch.testing.assert_close(twin(x), expected)
    assert not replays
    for _ in range(WARM - 1):
        twin(x)
    assert len(replays) == 1
    torch.testing.assert_close(twin(x), expected)


@torch.inference_mode()
def test_undone(replays):
    for name in ("timm-dinov3", "openclip"):
        model, x = single(name)
        handle = sparsight.prune(model, RECIPE)
        for _ in range(WARM):
            outputs(name, model, x)
        assert len(replays) == 1
        assert handle.packed
        handle.remove()
        replays.clear()
        outputs(name, model, x)
        assert not replays
        names = {key for module in model.modules() for key in module.__dict__}
        assert not {"forward", "_sparsight", "_sparsight_store", "_sparsight_qkv"} & names
