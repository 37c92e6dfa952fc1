"""What only a GPU can show: CUDA graphs, compiled graphs, autocast. test_device.py needs none."""

import copy

import pytest
import torch
from zoo import RECIPES, images, made, prune

if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

NAMES = ["timm-token", "vit"]


def logits(model, x):
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out.logits


def given(name, method):
    torch.manual_seed(0)
    model = copy.deepcopy(made(name)).float().cuda()
    return model, prune(model, RECIPES[method]), images(name, 4).float().cuda(), images(name, 4).float().cuda().flip(-1)


@torch.no_grad()
@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("name", NAMES)
def test_recorded_as_a_cuda_graph(name, method):
    model, handle, x, other = given(name, method)
    want, kept = logits(model, other), [plan.keep for plan in handle.plans]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            logits(model, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = logits(model, x)
    x.copy_(other)
    graph.replay()
    assert all(torch.equal(keep, plan.keep) for keep, plan in zip(kept, handle.plans, strict=True))
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("method", ["class_attention", "col_ln", "renyi", "evit", "tome", "similarity"])
def test_compiled_with_cuda_graphs(method):
    torch._dynamo.reset()
    model, _, x, other = given("timm-token", method)
    want = logits(model, other)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        compiled(x)
    torch.testing.assert_close(logits(compiled, other).clone(), want, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("method", RECIPES)
def test_autocast_and_channels_last(method):
    model, handle, x, _ = given("timm-token", method)
    logits(model, x)
    counts = handle.counts
    with torch.autocast("cuda", torch.bfloat16):
        out = logits(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert out.isfinite().all()
    assert handle.counts == counts
