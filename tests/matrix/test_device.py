"""Pruned models on a GPU: nothing is left on the CPU, and where counts are fixed nobody waits for the device, as CUDA graphs want it."""

import copy
from contextlib import nullcontext

import pytest
import torch
from pretended import gpu, moved, nobody_waits, to_cpu, to_gpu
from zoo import ADAPTIVE, ZOO, fixed, images, made, prune

import sparsight

NAMES = [
    "timm-token",
    "timm-qknorm",
    "timm-eva02",
    "timm-beit",
    "timm-relpos",
    "timm-dinov3",
    "timm-naflex",
    "vit",
    "dinov2-registers",
    "dinov3",
    "beit",
    "clip",
    "openclip",
    "siglip",
]
WAITING = ["beit"]
"""Models that wait by themselves: transformers' BEiT makes an index on the CPU in every forward."""


def check(name, text, monkeypatch, waiting):
    """Output and plans of a model on the GPU are those of the same model on the CPU."""
    model, x = copy.deepcopy(made(name)), images(name, 3)
    handle = prune(model, text)
    want = fixed(name, model, x)
    weights = None if handle.learned is None else [dict(module.named_parameters()) for module in handle.learned]
    with gpu():
        there, pixels = moved(copy.deepcopy(made(name))), to_gpu(x)
        found = sparsight.prune(there, text, weights=to_gpu(weights))
        monkeypatch.setitem(vars(ZOO[name]), "call", to_gpu(ZOO[name].call))
        fixed(name, there, pixels)  # what is made once, as tables of positions
        with nullcontext() if waiting else nobody_waits():
            got = fixed(name, there, pixels)
        for key, value in want.items():
            torch.testing.assert_close(to_cpu(got[key]), value, rtol=1e-5, atol=1e-6)  # transformers resamples positions in float32
        for one, other in zip(found.plans, handle.plans, strict=True):
            assert torch.equal(to_cpu(one.keep), other.keep)
            assert torch.equal(to_cpu(one.owner), other.owner)
        assert found.counts == handle.counts


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_fixed_counts(name, recipe, monkeypatch):
    check(name, recipe, monkeypatch, waiting=name in WAITING)


@torch.no_grad()
@pytest.mark.parametrize("recipe", ADAPTIVE)
@pytest.mark.parametrize("name", ["timm-token", "vit"])
def test_adaptive_counts(name, recipe, monkeypatch):
    check(name, ADAPTIVE[recipe], monkeypatch, waiting=True)


@torch.no_grad()
def test_a_wait_would_be_seen():
    with gpu(), pytest.raises((AssertionError, RuntimeError)), nobody_waits():
        to_gpu(torch.ones(3)).sum().item()


@torch.no_grad()
def test_a_tensor_left_behind_would_be_seen():
    with gpu(), pytest.raises(RuntimeError, match="same device"):
        to_gpu(torch.ones(3)) + torch.ones(3)
