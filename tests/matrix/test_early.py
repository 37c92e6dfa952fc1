"""Sites that choose before their block's attention: the same result as after it, with less work, and never behind a listener's back."""

import pytest
import torch
from zoo import DEPTH, ZOO, images, made, outputs

import sparsight
from sparsight.models.select_first import Opened

RECIPES = [
    "class_attention:keep=0.5,layers=1/2",
    "col_ln:keep=0.5,layers=0/2",
    "shannon:keep=0.6,layers=1/3",
    "renyi:keep=0.4,layers=2",
]
OPENED = [
    *("timm-token", "timm-distilled", "timm-layerscale", "timm-qknorm", "vit", "deit", "dinov2", "clip", "siglip"),
    *("timm-eva", "timm-eva02", "timm-eva02-post", "timm-dinov3", "timm-perception", "timm-rope-mixed", "dinov3", "openclip"),
]
CLOSED = ["timm-gated", "timm-unfused", "timm-naflex", "timm-beit", "vit-model-eager", "beit"]


def kinds(kind):
    return [kind, *(below for sub in kind.__subclasses__() for below in kinds(sub))]


@pytest.fixture
def late(monkeypatch):
    """Call it, and from then on no attention can be taken apart."""

    def switch():
        for kind in kinds(Opened):
            if "opens" in kind.__dict__:
                monkeypatch.setattr(kind, "opens", lambda *_: False)

    return switch


@pytest.fixture
def rows(monkeypatch):
    """Number of query rows of every attention that torch has computed."""
    seen, real = [], torch.nn.functional.scaled_dot_product_attention

    def count(query, *args, **kwargs):
        seen.append(query.shape[2])
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    return seen


def run(name, recipe):
    """All outputs, and the tokens kept at each site."""
    with sparsight.prune(made(name), recipe) as handle:
        return outputs(name, made(name), images(name)), [plan.keep for plan in handle.plans]


@torch.no_grad()
@pytest.mark.parametrize("text", RECIPES)
@pytest.mark.parametrize("name", OPENED)
def test_early_equals_late(name, text, late, rows):
    if "class" in text and not ZOO[name].class_token:
        pytest.skip("no class token")
    early, kept = run(name, text)
    counts = list(rows)
    rows.clear()
    late()
    after, kept_after = run(name, text)
    assert all(torch.equal(a, b) for a, b in zip(kept, kept_after, strict=True))
    for key in early:
        torch.testing.assert_close(early[key], after[key], rtol=1e-9, atol=1e-9)
    assert sum(counts) < sum(rows), "a site's attention ran for tokens that leave"


@torch.no_grad()
@pytest.mark.parametrize("text", ["col_ln:keep=0.5,layers=0/2", "renyi:keep=0.5,layers=1/2", "shannon:keep=0.5,layers=0/3"])
def test_attention_and_score_share_their_softmax(text, rows):
    """Two sites whose score makes the attention's output on the way: torch's attention runs in the other blocks only."""
    run("timm-token", text)
    assert len(rows) == DEPTH - 2


def test_with_gradients_nothing_is_shared_and_all_is_the_same(late, rows):
    x = images("timm-layerscale").requires_grad_()
    grads = []
    for switch in (lambda: None, late):
        switch()
        with sparsight.prune(made("timm-layerscale"), "col_ln:keep=0.5,layers=0/2"):
            made("timm-layerscale")(x).square().sum().backward()
        grads.append(x.grad)
        x.grad = None
    assert len(rows) == 2 * DEPTH
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", CLOSED)
def test_other_attention_is_left_whole(name, rows):
    """Gates, positions, explicit attention: what cannot be taken apart runs as its framework wrote it."""
    patches = ZOO[name].patches + ZOO[name].prefix
    run(name, "col_ln:keep=0.5,layers=0")
    assert not rows or (rows[0] == patches and len(rows) == DEPTH)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm-token", "vit"])
def test_whoever_listens_to_the_attention_hears_it(name):
    """A hook on a site's attention gets the whole output, as without pruning."""
    model, heard = made(name), []
    attention = model.blocks[1].attn if name.startswith("timm") else model.vit.layers[1].attention
    expected, _ = run(name, RECIPES[0])
    hook = attention.register_forward_hook(lambda _m, _a, out: heard.append((out if torch.is_tensor(out) else out[0]).shape[1]))
    found, _ = run(name, RECIPES[0])
    hook.remove()
    assert heard == [ZOO[name].prefix + ZOO[name].patches]
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm-token", "dinov2", "clip-vision"])
def test_behind_merged_tokens(name, late, rows):
    """A second handle's early site sees keys that stand for several patches: their bias counts for the survivors' rows too."""
    with sparsight.prune(made(name), "tome:remove=4,layers=0"):
        early, kept = run(name, "col_ln:keep=0.5,layers=2")
        late()
        after, kept_after = run(name, "col_ln:keep=0.5,layers=2")
    assert torch.equal(kept[0], kept_after[0])
    for key in early:
        torch.testing.assert_close(early[key], after[key], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_nothing_stays_on_the_modules():
    model = made("timm-token")
    with sparsight.prune(model, "col_ln:keep=0.5,layers=0/2"):
        model(images("timm-token"))
        assert not any("_sparsight_out" in module.__dict__ for module in model.modules())
