"""Images of one batch with different numbers of tokens: each image gets what it gets alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ADAPTIVE, ZOO, fixed, images, made, needs, outputs, untouched

import sparsight
from sparsight import PruneError
from sparsight.models.key_bias import key_bias

TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
SHARED = {"logits_per_image", "logits_per_text", "text_embeds", "logit_scale", "text_features"}
"""Outputs that mix the images of a batch, or have nothing to do with them."""
AFTER = {
    "keep": "col_ln:keep=0.6,layers=2",
    "fuse": "evit:keep=0.6,layers=2",
    "merge": "tome:remove=3,layers=1/2",
    "position": "similarity:keep=0.6,layers=2,diversity=1.5",
    "block": "renyi:tokens=3,layers=2,where=block",
}


@pytest.fixture(params=ADAPTIVE)
def recipe(request: pytest.FixtureRequest, name: str) -> str:
    text = ADAPTIVE[request.param]
    if "class_attn" in needs(text) and not ZOO[name].class_token:
        pytest.skip("scores by class attention")
    return text


def tokens(found: dict[str, Tensor]) -> Tensor | None:
    return found.get("tokens", found.get("last_hidden_state"))


def check_alone(name: str, model: nn.Module, x: Tensor, handles: list[sparsight.Handle]) -> list[list[int]]:
    """Run the batch, then every image alone; the counts of every site."""
    prefix, close = ZOO[name].prefix, {"rtol": 1e-5, "atol": 1e-6} if name.endswith("-eager") else TIGHT  # softmax in float32
    together, plans = outputs(name, model, x), [plan for handle in handles for plan in handle.plans]
    sources = [plan for handle in handles for plan in handle.sources()]
    for i in range(len(x)):
        alone = outputs(name, model, x[i : i + 1])
        for key in together.keys() - SHARED - {"tokens", "last_hidden_state"}:
            torch.testing.assert_close(alone[key][0], together[key][i], **close)
        if (left := tokens(alone)) is not None and (padded := tokens(together)) is not None:
            torch.testing.assert_close(left[0], padded[i, : left.shape[1]], **close)
            assert left.shape[1] == prefix + plans[-1].counts[i]
        for one, all_of_them in zip([p for h in handles for p in h.plans], plans, strict=True):
            n = all_of_them.counts[i]
            assert one.slots == n
            assert torch.equal(one.keep[0], all_of_them.keep[i, : one.keep.shape[1]])
            assert torch.equal(one.owner[0], all_of_them.owner[i, : one.total])
            assert (all_of_them.owner[i, one.total :] == -1).all()
        for one, all_of_them in zip([p for h in handles for p in h.sources()], sources, strict=True):
            assert torch.equal(one.owner[0], all_of_them.owner[i])
    return [plan.counts for plan in plans]


@torch.no_grad()
def test_item_of_a_batch_equals_item_alone(name, recipe):
    model, x = made(name), images(name, 4)
    with sparsight.prune(model, recipe) as handle:
        fixed(name, model, x)
        shown = handle.counts
        counts = check_alone(name, model, x, [handle])
    assert all(0 < n <= ZOO[name].patches for site in counts for n in site)
    assert shown == [site if len(set(site)) > 1 else site[0] for site in counts]


@torch.no_grad()
def test_counts_do_differ(name):
    """Otherwise the other tests here would say nothing."""
    model, x = made(name), images(name, 4)
    different = []
    for text in ADAPTIVE.values():
        if "class_attn" not in needs(text) or ZOO[name].class_token:
            with sparsight.prune(model, text) as handle:
                outputs(name, model, x)
                different.append(any(isinstance(count, list) for count in handle.counts))
    assert sum(different) >= 3


@torch.no_grad()
@pytest.mark.parametrize("later", AFTER)
def test_static_sites_follow(name, later):
    """Whatever comes after: it scores, keeps, fuses and merges in every image as if that were alone."""
    model, x = made(name), images(name, 4)
    if "class_attn" in needs(AFTER[later]) and not ZOO[name].class_token:
        pytest.skip("scores by class attention")
    layers = "input" if later == "position" else "0"
    for kappa in (0.2, 0.4, 0.0, 0.6):  # a few tokens only: some thresholds leave as many in every image
        first = f"similarity:threshold=adaptive,kappa={kappa},layers={layers}"
        with sparsight.prune(model, first) as one, sparsight.prune(model, AFTER[later]) as two:
            counts = check_alone(name, model, x, [one, two])
        if len(set(counts[0])) > 1:
            return
    pytest.fail("all images kept the same number of tokens")


@torch.no_grad()
def test_remove_restores(name, recipe):
    model, x = made(name), images(name)
    with sparsight.prune(model, recipe):
        outputs(name, model, x)
    for key, value in outputs(name, model, x).items():
        torch.testing.assert_close(value, untouched(name)[key], rtol=0, atol=1e-12)


def test_gradients_flow_in_training(name, recipe):
    model, x = made(name), images(name, 3)
    model.train()
    with sparsight.prune(model, recipe):
        sum(value.square().sum() for value in fixed(name, model, x).values()).backward()
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    assert all(torch.isfinite(grad).all() for grad in found.values())
    assert any(("patch_embed" in key or "conv1" in key) and grad.abs().max() > 0 for key, grad in found.items())


@torch.no_grad()
def test_nothing_is_added_where_counts_are_equal(name):
    """Blocks after a site that only drops run as the model's own; without padding there is no mask."""
    model, x = made(name), images(name)
    with sparsight.prune(model, "col_ln:keep=0.6,layers=1") as handle:
        outputs(name, model, x)
        patched = [index for index, block in enumerate(handle.family.blocks) if "forward" in vars(block)]
        assert patched == [1] or handle.family.positional
        assert key_bias(handle.outcomes[-1], False, handle.family.prefix, x) is None
    if ZOO[name].class_token:
        with sparsight.prune(model, "ats:tokens=2,layers=1") as handle:
            outputs(name, model, x[:1])
            assert key_bias(handle.outcomes[-1], False, handle.family.prefix, x) is None
            assert handle.plans[0].valid is None


@pytest.mark.parametrize("name", ["vit", "siglip-vision"])
def test_attention_without_masks_is_refused(name):
    model = made(name)
    used = model.config._attn_implementation
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(PruneError, match="flash_attention_2 takes no mask"):
        sparsight.prune(model, "similarity:threshold=adaptive")
    model.config._attn_implementation = used
