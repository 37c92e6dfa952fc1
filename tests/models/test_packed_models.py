"""Packed weights in blocks and pruned models: where they are put, what copies, hooks and compilers see, and that all of it goes again."""

import copy
import io
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from packing import IN, OUT, ready, uses
from torch import nn

import sparsight
from sparsight.models._kernel import kernel
from sparsight.models._packed import held, install, uninstall

pytestmark = pytest.mark.skipif(kernel() is None, reason="this torch has no packed product")


class Odd(nn.Linear):
    """A subclass, which may do anything."""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.act, self.last = nn.Linear(IN, OUT), nn.GELU(), nn.Linear(OUT, IN)
        self.odd, self.attn, self.cross = Odd(IN, OUT), nn.MultiheadAttention(IN, 2), nn.MultiheadAttention(IN, 2, kdim=OUT)
        self.mine = nn.Linear(IN, OUT)
        self.mine.forward = torch.neg

    def forward(self, x):
        return self.last(self.act(self.first(x)))


def test_installs_on_plain_layers_only_and_goes_again():
    block = Block()
    before = copy.deepcopy(block.state_dict())
    found = install(block)
    with torch.no_grad():
        assert [uses(block, torch.randn(20, IN)) for _ in range(3)] == [0, 2, 2]
    assert found == [block.first, block.last, block.attn, block.attn.out_proj, block.cross.out_proj]
    assert install(block) == []
    assert block.mine.forward is torch.neg
    assert type(block.first) is nn.Linear
    after = block.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    uninstall(found)
    assert [name for name, module in block.named_modules() if "forward" in module.__dict__] == ["mine"]
    uninstall(found)


def test_uninstall_leaves_the_forward_of_another_tool():
    block = Block()
    found = install(block)
    block.first.forward = partial(F.linear, weight=block.first.weight)
    uninstall(found)
    assert "forward" in block.first.__dict__
    assert "forward" not in block.last.__dict__


@torch.no_grad()
@pytest.mark.parametrize("way", ["deepcopy", "saved"])
def test_copies_pack_their_own_weights(way):
    block, x = Block(), torch.randn(1, 20, IN)
    install(block)
    block(x)
    before = block(x)
    if way == "deepcopy":
        other = copy.deepcopy(block)
    else:
        file = io.BytesIO()
        torch.save(block, file)
        assert file.tell() < 3 * sum(p.numel() * p.element_size() for p in block.parameters())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    other.first.weight.zero_()
    assert [uses(other, x) for _ in range(3)] == [0, 2, 2]
    assert torch.equal(block(x), before)
    assert torch.equal(other.first(x), other.first.bias.expand(1, 20, OUT))


@torch.no_grad()
def test_hooks_go_on_working():
    linear, x = ready(), torch.randn(1, 20, IN)
    seen = []
    linear.register_forward_hook(lambda _module, _args, output: seen.append(output))
    linear.register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    y = linear(x)
    assert seen[0] is y
    assert uses(linear, x)
    torch.testing.assert_close(y, F.linear(x * 2, linear.weight, linear.bias), rtol=0, atol=1e-5)


@torch.no_grad()
def test_compiled_graph_does_not_ask_for_the_rows():
    """One graph for few rows and for many: the rule leaves no guard on the shape behind."""
    block = Block()
    install(block)
    for _ in range(2):
        block(torch.randn(1, 20, IN))
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=True)
    for rows in (20, 64, 33):
        x = torch.randn(1, rows, IN)
        torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=1e-5)
    assert len(graphs) == 1
    assert torch._C._nn.linear in {node.target for node in graphs[0].graph.nodes if node.op == "call_function"}


def linears(block):
    return [block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2]


def small():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()


@torch.inference_mode()
def test_pruned_model_packs_its_blocks_and_patch_embedding():
    model, images = small(), torch.randn(1, 3, 64, 64)
    with sparsight.prune(model, "class_attention:keep=0.5,layers=1"):
        assert [uses(model, images) for _ in range(3)] == [0, 13, 13]
        layers = [model.patch_embed.proj, *(linear for block in model.blocks for linear in linears(block))]
        assert held(model) == sum(layer.weight.nbytes for layer in layers)
        first = model(images)
    assert uses(model, images) == held(model) == 0
    with sparsight.prune(model, "class_attention:keep=0.5,layers=1", pack=False):
        assert [uses(model, images) for _ in range(3)] == [0, 0, 0]
        torch.testing.assert_close(model(images), first, rtol=1e-4, atol=1e-5)
    assert not any("forward" in module.__dict__ for module in model.modules())


@torch.inference_mode()
def test_one_handle_that_packs_is_enough():
    model, images = small(), torch.randn(1, 3, 64, 64)
    early = sparsight.prune(model, "col_ln:keep=0.9,layers=0", pack=False)
    late = sparsight.prune(model, "col_ln:keep=0.5,layers=2")
    assert [uses(model, images) for _ in range(3)] == [0, 13, 13]
    late.remove()
    assert [uses(model, images) for _ in range(3)] == [0, 0, 0]
    early.remove()
