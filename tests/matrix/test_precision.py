"""Half precision runs, double precision decides as single precision does, autocast scores in full precision."""

import copy
from functools import cache

import pytest
import torch
from zoo import ADAPTIVE, PARSED, RECIPES, SLOTS, ZOO, fixed, images, made, needs, prune

import sparsight
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

SITES = {
    **{name: f"{name}:keep=0.5" for name in PARSED if name not in {**RECIPES, **ADAPTIVE, "resize": ""}},
    **RECIPES,
    **ADAPTIVE,
    "visionzip-col_ln": "visionzip:tokens=20,score=col_ln",
    "prumerge-adaptive": "prumerge",
    "prumerge-training": "prumerge_plus:keep=0.25,spacing=training",
    "prumerge-rescue": "prumerge:keep=0.5,rescue=0.5",
    "vispruner-rescue": "vispruner:keep=0.5,rescue=0.5",
    "col_ln-average": "col_ln:keep=0.5,heads=average,stride=2",
}
"""Every registered method, with the options that look at queries, keys and values in other ways."""


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


def offered(recipe, dtype):
    """Signals of every kind at one site, 16 x 16 patches behind one class token, in half precision."""
    rng = torch.Generator().manual_seed(3)

    def tensor(*shape):
        return torch.randn(2, *shape, generator=rng).to(dtype)

    given = {name: tensor(3, 257, 16) for name in "qkv"} | {"x": tensor(256, 32), "feats": tensor(256, 24)}
    given |= {"class_token": tensor(1, 32), "text_attn": tensor(5, 256).softmax(-1), "grid": (16, 16)}
    given |= {"text": tensor(3, 24), "text_k": tensor(3, 3, 16), "depth": 24}
    given |= {f"shallow_{name}": tensor(3, 257, 16) for name in "qk"}
    if "attns" in needs(str(recipe)):
        given["attns"] = [tensor(3, 257, 257).softmax(-1) for _ in range(3)]
    if recipe.weights is not None:
        count = recipe.schedule.count(256, 0, 1)
        given["weights"] = {key: tensor(*weight.shape)[0] for key, weight in recipe.weights(32, count).items()}
    return given


def in_float32(value):
    if isinstance(value, dict):
        return {key: in_float32(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_float32(item) for item in value]
    return value.float() if isinstance(value, torch.Tensor) else value


@torch.no_grad()
@pytest.mark.parametrize("text", SITES.values(), ids=SITES)
def test_half_precision_signals_decide_as_float32(text):
    """The numbers are the same, so the decision is: nothing is computed in half precision, under autocast neither."""
    for dtype in (torch.bfloat16, torch.float16):
        given = offered(parse(text), dtype)
        exact = sparsight.reduce(text, **in_float32(given))
        with torch.autocast("cpu", dtype=dtype):
            half = sparsight.reduce(text, **given)
        assert torch.equal(half.plan.keep, exact.plan.keep), dtype
        assert torch.equal(half.plan.owner, exact.plan.owner), dtype
        for ours, wanted in ((half.score, exact.score), (half.size, exact.size), (half.plan.mix, exact.plan.mix)):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0)
