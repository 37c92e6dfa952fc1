"""Blocks recorded as one program: the bits of the blocks themselves, and never instead of something that has changed."""

import pytest
import torch
from copies import copied
from recordings import WARM, one_by_one, outcome, single, warm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import DEPTH, FEW, RECIPES, prune

import sparsight
from sparsight.models import _packed, _recording, _tape
from sparsight.models._kernel import FEW as ROWS
from sparsight.models._kernel import ONEDNN, kernel
from sparsight.models._recording import AFTER, TIMES

pytestmark = pytest.mark.skipif(kernel() is None, reason="this torch has no packed product")

NAME = "timm-layerscale"
RECIPE = "col_ln:keep=0.5,layers=1/2"


def unrecorded(model, x):
    """The output of the model with its blocks run one by one."""
    with one_by_one():
        return model(x)


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_same_bits_as_the_blocks(name, replays):
    model, x = single("timm-token")
    handle = prune(model, RECIPES[name])
    warm(model, x)
    other = x.flip(-1) + 0.1
    found = model(other)
    left = outcome(handle)
    assert len(replays) == (0 if handle.learned else 2)
    if replays:
        assert torch.equal(found, unrecorded(model, other))
        assert len(left) == len(outcome(handle))
        assert all(map(torch.equal, left, outcome(handle)))


@torch.inference_mode()
@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("text", [RECIPES[name] for name in FEW])
@pytest.mark.parametrize("name", ["timm-token", "timm-registers", "timm-noclass-map", NAME, "timm-dynamic"])
def test_every_kind_of_model(name, text, replays):
    if text.startswith("evit") and name == "timm-noclass-map":
        pytest.skip("no class token")
    model, x = single(name)
    sparsight.prune(model, text)
    warm(model, x)
    assert len(replays) == 1
    assert torch.equal(model(x + 0.1), unrecorded(model, x + 0.1))


@torch.inference_mode()
def test_only_after_a_row_of_equal_shapes(replays, monkeypatch):
    calls, real = [], _recording.record
    monkeypatch.setattr(_recording, "record", lambda *args: calls.append(args) or real(*args))
    model, x = single(NAME)
    pair = torch.cat([x, x + 0.1])
    sparsight.prune(model, RECIPE)
    for _ in range(WARM):
        model(x)
        model(pair)
    warm(model, x, WARM - 1)
    assert not calls
    warm(model, x, 3)
    assert len(calls) == 1
    assert len(replays) == 3
    warm(model, pair, AFTER * TIMES - 1)
    assert len(calls) == 1
    model(pair)
    assert len(calls) == 2
    assert torch.equal(model(pair), unrecorded(model, pair))


@torch.inference_mode()
def test_only_few_rows(replays, monkeypatch):
    """Large batches gain nothing, and would hold all their activations while they are recorded."""
    monkeypatch.setattr(_packed, "kernel", lambda: ONEDNN._replace(most=10**6))
    model, x = single(NAME)
    batch = x.expand(ROWS // 17 + 1, -1, -1, -1)
    handle = sparsight.prune(model, RECIPE)
    warm(model, batch)
    assert handle.packed
    assert not replays
    warm(model, x)
    assert replays


@torch.inference_mode()
def test_a_stack_of_handles(replays):
    model, x = single(NAME)
    with sparsight.prune(model, "col_ln:keep=0.7,layers=1"):
        handle = sparsight.prune(model, "evit:keep=0.5,layers=2")
        warm(model, x)
        assert len(replays) == 1
        assert torch.equal(model(x + 0.1), unrecorded(model, x + 0.1))
        handle.remove()
        replays.clear()
        model(x)
        assert not replays
    assert "forward" not in model.blocks.__dict__


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


WAYS = {
    "weight": lambda b: b.attn.proj.weight.mul_(2),
    "data of a bias": lambda b: b.mlp.fc1.bias.data.add_(1),
    "storage of a norm": lambda b: setattr(b.norm2.weight, "data", b.norm2.weight.data * 2),
    "another norm's weight": lambda b: setattr(b.norm2, "weight", nn.Parameter(b.norm2.weight * 2)),
    "another bias": lambda b: setattr(b.mlp.fc2, "bias", nn.Parameter(b.mlp.fc2.bias + 1)),
    "scale": lambda b: setattr(b.ls2, "gamma", nn.Parameter(b.ls2.gamma * 2)),
    "eps": lambda b: setattr(b.norm1, "eps", 1.0),
    "activation's formula": lambda b: setattr(b.mlp.act, "approximate", "tanh"),
    "layer": lambda b: setattr(b.attn, "proj", Doubled(*b.attn.proj.weight.shape[::-1]).eval()),
    "activation": lambda b: setattr(b.mlp, "act", nn.SiLU().eval()),
    "hook inside": lambda b: b.mlp.register_forward_hook(lambda _m, _a, out: out.roll(1, -1)),
    "hook": lambda b: b.register_forward_hook(lambda _m, _a, out: out.roll(1, -1)),
    "pre-hook": lambda b: b.register_forward_pre_hook(lambda _m, args: (args[0] * 2,)),
    "forward": lambda b: setattr(b, "forward", lambda x: x * 2),
    "unfused": lambda b: setattr(b.attn, "fused_attn", False),
    "training": lambda b: b.train(),
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_whoever_changes_a_block_is_heard(way, replays):
    model, x = single(NAME)
    sparsight.prune(model, RECIPE)
    warm(model, x)
    before, _ = model(x), replays.clear()
    WAYS[way](model.blocks[DEPTH - 1])
    torch.manual_seed(0)
    found = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, unrecorded(model, x), rtol=1e-5, atol=1e-5)
    if way not in ("training", "unfused"):
        assert not torch.equal(found, before)
    assert len(replays) == (1 if way in ("data of a bias", "storage of a norm") else 0)


@torch.no_grad()
def test_a_container_that_changes_is_heard(replays):
    model, x = single(NAME)
    sparsight.prune(model, RECIPE)
    warm(model, x)
    before, _ = model(x), replays.clear()
    model.blocks[0], model.blocks[3] = model.blocks[3], model.blocks[0]
    assert not torch.equal(model(x), before)
    assert not replays


@torch.no_grad()
@pytest.mark.parametrize("way", ["gradient", "autocast", "tracing", "counter", "compile", "half", "shape"])
def test_stands_back(way, replays):
    model, x = single(NAME)
    sparsight.prune(model, RECIPE)
    warm(model, x)
    replays.clear()
    if way == "compile":
        torch._dynamo.reset()
        torch.compile(model, backend="eager", fullgraph=True)(x)
    elif way == "tracing":
        torch.jit.trace(model, x, check_trace=False)
    elif way == "half":
        model.bfloat16()(x.bfloat16())
    elif way == "shape":
        model(torch.cat([x, x]))
    else:
        contexts = {"gradient": torch.enable_grad(), "autocast": torch.autocast("cpu", torch.bfloat16)}
        with contexts.get(way) or FlopCounterMode(display=False):
            model(x)
    assert not replays


@torch.inference_mode()
def test_blocks_called_one_by_one_run_themselves(replays):
    model, x = single(NAME)
    sparsight.prune(model, RECIPE)
    warm(model, x)
    expected, _ = model(x), replays.clear()
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    for block in model.blocks:
        tokens = block(tokens)
    assert torch.equal(model.forward_head(model.norm(tokens)), expected)
    model.forward_intermediates(x)
    assert not replays


@torch.inference_mode()
@pytest.mark.parametrize("order", ["shannon", "renyi"])
def test_entropies_too_faint_to_trust(order, replays):
    """Where prefix tokens take all of the attention, the recorded statistic says so, and the blocks run."""
    model, x = single("timm-token")
    sparsight.prune(model, f"{order}:keep=0.5,layers=1")
    warm(model, x)
    assert len(replays) == 1
    replays.clear()
    attention = model.blocks[1].attn
    width = attention.qkv.weight.shape[1]
    model.cls_token.mul_(1e4)
    attention.qkv.weight[:width].mul_(1e3)
    found = model(x)
    assert not replays
    warm(model, x, AFTER * TIMES)
    assert found.isfinite().all()
    assert torch.equal(model(x), unrecorded(model, x))


@torch.inference_mode()
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_have_seen_nothing(way, replays):
    model, x = single(NAME)
    sparsight.prune(model, RECIPE)
    warm(model, x)
    expected, _ = model(x), replays.clear()
    twin = copied(model, way)
    torch.testing.assert_close(twin(x), expected)
    assert not replays
    warm(twin, x, WARM - 1)
    assert len(replays) == 1
    assert twin.blocks.__dict__["_sparsight"].family is twin._sparsight
    assert torch.equal(twin(x), model(x))


@torch.inference_mode()
def test_without_a_script_blocks_run_one_by_one(monkeypatch, replays):
    def refuse(*_args, **_kwargs):
        raise NotImplementedError("gone")

    monkeypatch.setattr(_tape.torch.jit, "trace", refuse)
    model, x = single(NAME)
    handle = sparsight.prune(model, "similarity:keep=0.6,layers=input")
    warm(model, x)
    assert not replays
    assert torch.equal(model(x), unrecorded(model, x))
    assert handle.counts


@torch.inference_mode()
@pytest.mark.parametrize("text", ["col_ln:keep=0.5,layers=1/2", "ats:keep=0.5,layers=1/2"])
def test_only_what_is_wanted_and_fixed(text, replays):
    """Not without packed weights, nor where images keep different numbers of tokens."""
    model, x = single("timm-token")
    with sparsight.prune(model, text, pack=text.startswith("ats")):
        warm(model, x)
    assert not replays


def test_python_must_not_look_at_results():
    x = torch.arange(6.0).view(1, 6)
    with torch.no_grad():
        with pytest.raises(_tape.TapeError):
            _tape.script(lambda x: [x * 2] if x.sum() > 3 else [x], [x])
        with pytest.raises(_tape.TapeError):
            _tape.script(lambda x: [x[x > 1]], [x])
        with pytest.raises(AssertionError):
            _tape.script(lambda x: [x + torch.rand(6)], [x])
        with pytest.raises(AssertionError):
            _tape.script(lambda x: [x + x.tolist()[0][0]], [x])
        weight = nn.Parameter(torch.ones(6))
        program = _tape.script(lambda x: [torch.addcmul(x, x, weight).relu_(), x.max()], [x])
        weight.data = torch.full((6,), 3.0)
        found, highest = program(-x)
        assert torch.equal(found, torch.zeros(1, 6))
        assert highest == 0
        assert torch.equal(program(x)[0], 4 * x)
