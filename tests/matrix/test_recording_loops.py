"""Recorded blocks where a loop of the model calls them (all but timm's VisionTransformer): the first block replays, the others hand on."""

import pytest
import torch
from copies import copied
from recordings import WARM, one_by_one, outcome, single, warm
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from zoo import DEPTH, FEW, RECIPES, ZOO, outputs

import sparsight
from sparsight.models._kernel import kernel
from sparsight.models._recording import recorded_block
from sparsight.prune import family_of

pytestmark = pytest.mark.skipif(kernel() is None, reason="this torch has no packed product")

LOOPS = [
    *("vit", "deit", "dinov2", "dinov2-registers", "dinov2-model-swiglu", "dinov3", "dinov3-plain"),
    *("clip", "clip-vision", "siglip", "siglip-vision"),
]
OTHERS = ["timm-eva", "timm-eva02", "timm-dinov3", "timm-beit", "timm-beit-shared", "openclip"]
"""Of timm and open_clip."""
RECIPE = "col_ln:keep=0.5,layers=1/2"


def warmed(name, recipe=RECIPE):
    """A pruned model whose next forward replays, an image of it, and its handle."""
    model, x = single(name)
    handle = sparsight.prune(model, recipe)
    for _ in range(WARM):
        outputs(name, model, x)
    return model, x, handle


@torch.inference_mode()
@pytest.mark.parametrize("text", [RECIPES[name] for name in FEW])
@pytest.mark.parametrize("name", [*LOOPS, *OTHERS])
def test_same_bits_as_the_blocks(name, text, replays):
    if text.startswith("evit") and not ZOO[name].class_token:
        pytest.skip("no class token")
    model, x, handle = warmed(name, text)
    assert len(replays) == 1
    found = outputs(name, model, x + 0.1)
    left = outcome(handle)
    assert len(replays) == 2
    with one_by_one():
        expected = outputs(name, model, x + 0.1)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert len(left) == len(outcome(handle))
    assert all(map(torch.equal, left, outcome(handle)))


@torch.inference_mode()
def test_blocks_do_not_run(replays, monkeypatch):
    model, x, _ = warmed("vit")
    replays.clear()
    monkeypatch.setattr("sparsight.models._recording.pruned_forward", None)
    model(x)
    assert len(replays) == 1


@torch.inference_mode()
@pytest.mark.parametrize("name", LOOPS)
def test_hidden_states_are_those_between_the_blocks(name, replays):
    """Also afterwards: transformers leaves its hooks on the layers, and then they run."""
    model, x, _ = warmed(name)
    replays.clear()
    sizes = {key: value for key, value in ZOO[name].call.items() if key == "interpolate_pos_encoding"}
    seen = family_of(model).model(x, output_hidden_states=True, **sizes).hidden_states
    assert [state.shape[1] for state in seen] == [state.shape[1] for state in sorted(seen, key=lambda s: -s.shape[1])]
    assert seen[-1].shape[1] < seen[0].shape[1]
    assert len({float(state.abs().sum()) for state in seen}) == DEPTH + 1
    outputs(name, model, x)
    assert not replays


WAYS = {
    "weight": lambda b: b.mlp.fc1.weight.mul_(2),
    "another bias": lambda b: setattr(b.mlp.fc2, "bias", nn.Parameter(b.mlp.fc2.bias + 1)),
    "eps": lambda b: setattr(b.norm1, "eps", 1.0),
    "activation": lambda b: setattr(b.mlp, "activation_fn", nn.ELU().eval()),
    "hook": lambda b: b.register_forward_hook(lambda _m, _a, out: out.roll(1, -1)),
    "hook inside": lambda b: b.mlp.register_forward_hook(lambda _m, _a, out: out.roll(1, -1)),
    "pre-hook": lambda b: b.register_forward_pre_hook(lambda _m, args: (args[0] * 2, *args[1:])),
    "forward": lambda b: setattr(b, "forward", lambda x, *_: x * 2),
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_whoever_changes_a_block_is_heard(way, replays):
    model, x, _ = warmed("dinov2")
    before, _ = model(x).logits, replays.clear()
    WAYS[way](model.dinov2.encoder.layer[DEPTH - 1])
    found = model(x).logits
    with one_by_one():
        torch.testing.assert_close(found, model(x).logits)
    assert not torch.equal(found, before)
    assert not replays


@torch.no_grad()
def test_numbers_of_an_activation_count(replays):
    model, x = single("vit")
    for block in model.vit.layers:
        block.mlp.activation_fn = nn.ELU().eval()
    sparsight.prune(model, RECIPE)
    warm(model, x)
    before, _ = model(x).logits, replays.clear()
    model.vit.layers[DEPTH - 1].mlp.activation_fn.alpha = 3.0
    assert not torch.equal(model(x).logits, before)
    assert not replays


@torch.no_grad()
def test_fewer_layers_are_heard(replays):
    model, x, _ = warmed("vit")
    before, _ = model(x).logits, replays.clear()
    model.vit.layers = model.vit.layers[: DEPTH - 1]
    assert not torch.equal(model(x).logits, before)
    assert not replays


@torch.inference_mode()
@pytest.mark.parametrize("way", ["loop", "forward", "arguments", "last layer"])
def test_only_in_the_models_own_loop(way, replays):
    """Whoever calls the layers sees what is between them."""
    model, x, _ = warmed("siglip-vision")
    expected, _, seen = model(x).last_hidden_state, replays.clear(), []

    def loop(inputs_embeds, **_):
        seen.append(inputs_embeds)
        for layer in model.encoder.layers:
            seen.append(layer(seen[-1], None))
        return BaseModelOutput(last_hidden_state=seen[-1])

    if way == "loop":
        found = model.post_layernorm(loop(model.embeddings(x)).last_hidden_state)
    elif way == "forward":
        model.encoder.forward = loop
        found = model(x).last_hidden_state
    elif way == "arguments":
        found = model(x, False).last_hidden_state
    else:
        found = expected
        assert not torch.equal(model.encoder.layers[-1](expected, None), expected)
    assert torch.equal(found, expected)
    assert len({float(state.abs().sum()) for state in seen}) == (DEPTH + 1 if seen else 0)
    assert not replays


@torch.no_grad()
@pytest.mark.parametrize("way", ["gradient", "autocast", "compile", "shape", "training"])
def test_stands_back(way, replays):
    model, x, _ = warmed("vit")
    replays.clear()
    if way == "compile":
        torch._dynamo.reset()
        torch.compile(model, backend="eager", fullgraph=True)(x)
    elif way == "shape":
        model(torch.cat([x, x]))
    elif way == "training":
        model.train()(x)
    else:
        with {"gradient": torch.enable_grad(), "autocast": torch.autocast("cpu", torch.bfloat16)}[way]:
            model(x)
    assert not replays


@torch.inference_mode()
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_have_seen_nothing(way, replays):
    model, x, _ = warmed("vit")
    expected, _ = model(x).logits, replays.clear()
    twin = copied(model, way)
    torch.testing.assert_close(twin(x).logits, expected)
    assert not replays
    warm(twin, x, WARM - 1)
    assert len(replays) == 1
    recorders = {id(block.forward.args[0]) for block in twin.vit.layers}
    assert len(recorders) == 1
    assert twin.vit.layers[0].forward.args[0].family is twin.vit._sparsight
    assert torch.equal(twin(x).logits, model(x).logits)


@torch.inference_mode()
def test_undone(replays):
    model, x, handle = warmed("siglip-vision")
    assert model.encoder.layers[0].forward.func is recorded_block
    handle.remove()
    replays.clear()
    model(x)
    assert not replays
    assert not any("forward" in module.__dict__ or "_sparsight" in module.__dict__ for module in model.modules())
