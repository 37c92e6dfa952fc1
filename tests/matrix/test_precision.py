"""Half precision runs, double precision decides as single precision does, autocast scores in full precision."""

import copy
from functools import cache

import pytest
import torch
from zoo import RECIPES, SLOTS, ZOO, fixed, images, made, needs, prune

from sparsight import parse

FEW = (
    "timm-registers",
    "timm-avgmax",
    "timm-noclass-map",
    "timm-unfused",
    "vit-model-eager",
    "dinov2",
    "clip",
    "siglip-classifier",
)


@cache
def in_single(name):
    return copy.deepcopy(made(name)).float()


def louder(*handles):
    """Fresh predictors score all tokens alike up to a millionth, which says nothing; larger weights tell them apart."""
    for handle in handles:
        for weight in handle.learned.parameters():
            weight.mul_(20 if weight.dim() == 2 else 1)


@torch.no_grad()
def test_float32_keeps_what_float64_keeps(name, recipe):
    model, single, x = made(name), in_single(name), images(name)
    with prune(model, recipe) as handle, prune(single, recipe) as other:
        if parse(recipe).name == "dynamicvit":
            louder(handle, other)
        exact, rough = fixed(name, model, x), fixed(name, single, x.float())
        for a, b in zip(handle.plans, other.plans, strict=True):
            if parse(recipe).name in SLOTS:  # their slots are near alike before training
                torch.testing.assert_close(a.mix.float(), b.mix, rtol=1e-3, atol=1e-4)
            else:
                assert torch.equal(a.keep, b.keep)
                assert torch.equal(a.owner, b.owner)
    for key in exact:
        assert rough[key].dtype == torch.float32
        torch.testing.assert_close(rough[key].double(), exact[key], rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("few", FEW)
def test_half_precision_runs(few, dtype):
    model = copy.deepcopy(made(few)).to(dtype)
    x = images(few).to(dtype)
    for text in RECIPES.values():
        if {"class_attn", "attns"} & needs(text) and not ZOO[few].class_token:
            continue
        with prune(model, text) as handle:
            assert all(value.isfinite().all() and value.dtype == dtype for value in fixed(few, model, x).values()), text
            assert all(s is None or s.dtype in (torch.float32, torch.float64) for s in handle.scores)


@torch.no_grad()
@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize("method", ["evit", "tome", "col_ln"])
def test_autocast_runs(few, method):
    if "class_attn" in needs(RECIPES[method]) and not ZOO[few].class_token:
        pytest.skip("no class token")
    model = in_single(few)
    with prune(model, RECIPES[method]) as handle, torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(value.isfinite().all() for value in fixed(few, model, images(few).float()).values())
        assert all(s is None or s.dtype == torch.float32 for s in handle.scores)
