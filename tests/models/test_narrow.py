"""A linear layer for few rows: the same numbers, the other product where the rule says so, and a model left as it was."""

import copy
import io
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsight.models import _narrow
from sparsight.models._narrow import LEAST, MOST, install, narrow, uninstall

IN, OUT = 96, 200


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Two threads and MKL, whatever the tests run on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(_narrow, "MKL", True)
    yield
    torch.set_num_threads(threads)


def layer(bias=True, **options):
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=bias, **options)


class Products(TorchDispatchMode):
    """Remembers the shape of every product of two matrices: [OUT, rows] if the weight stands on the left."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.linear, torch.ops.aten.bmm):
            self.shapes.append(tuple(result.shape))
        return result


def watched(linear, x):
    """The layer's output, and whether it computed W x^T."""
    with Products() as products:
        y = linear(x)
    assert products.shapes
    return y, any(shape[0] == OUT for shape in products.shapes)


def turned(linear, x):
    return watched(linear, x)[1]


def inputs(rows, dtype=torch.float32):
    """Tensors with this many rows of IN channels, in several shapes and memory layouts."""
    x = torch.randn(rows, IN, dtype=dtype, generator=torch.Generator().manual_seed(rows))
    wide = torch.randn(1, rows, 2 * IN, dtype=dtype, generator=torch.Generator().manual_seed(rows))
    found = {
        "matrix": x,
        "batch of one": x[None],
        "transposed": x.t().contiguous().t(),
        "part of the channels": wide[..., IN:],
        "every second channel": wide[..., ::2],
        "four dimensions": x.view(1, rows, 1, IN),
    }
    if rows % 2 == 0:
        found["batch of two"] = x.view(2, rows // 2, IN)
        found["tokens first"] = x.view(rows // 2, 2, IN).transpose(0, 1)
        found["without the first token"] = torch.cat([x[:2].view(2, 1, IN), x.view(2, rows // 2, IN)], dim=1)[:, 1:]
    return found


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("rows", range(1, 71))
def test_same_numbers_and_the_other_product_by_the_rule(rows, bias):
    linear = layer(bias)
    install(linear)
    for name, x in inputs(rows).items():
        y, other = watched(linear, x)
        exact = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert y.shape == (*x.shape[:-1], OUT), name
        assert other == (LEAST <= rows <= MOST), name
        assert not other or y.is_contiguous(), name


@torch.no_grad()
def test_plain_layer_never_turns():
    """The mode sees the difference at all."""
    assert not turned(layer(), torch.randn(LEAST, IN))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_of_number_stay_plain(dtype):
    linear = layer(dtype=dtype)
    install(linear)
    x = torch.randn(1, 20, IN, dtype=dtype)
    assert not turned(linear, x)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


@torch.no_grad()
@pytest.mark.parametrize("why", ["one thread", "no MKL", "autocast", "tensor of a subclass", "weight of no parameter"])
def test_stays_plain(why, monkeypatch):
    linear, x = layer(), torch.randn(1, 20, IN)
    install(linear)
    assert turned(linear, x)
    if why == "one thread":
        torch.set_num_threads(1)
    if why == "no MKL":
        monkeypatch.setattr(_narrow, "MKL", False)
    if why == "tensor of a subclass":
        x = x.as_subclass(type("Other", (torch.Tensor,), {}))
    if why == "weight of no parameter":
        nn.utils.parametrizations.weight_norm(linear)
        assert "forward" in linear.__dict__
    with torch.autocast("cpu", enabled=why == "autocast"):
        assert not turned(linear, x)


def test_empty_and_wrong_inputs_are_the_plain_layers_matter():
    linear = layer()
    install(linear)
    with torch.no_grad():
        assert linear(torch.randn(2, 0, IN)).shape == (2, 0, OUT)
        for shape in [(20, IN // 2), (8 * IN,), (5, IN + 1)]:
            with pytest.raises(RuntimeError, match="shape"):
                linear(torch.randn(shape))


@pytest.mark.parametrize("frozen", [False, True], ids=["weights-learn", "input-learns"])
def test_gradients_are_those_of_the_plain_layer(frozen):
    plain = layer().requires_grad_(not frozen)
    linear = copy.deepcopy(plain)
    install(linear)
    x = torch.randn(2, 10, IN, requires_grad=frozen)
    assert not turned(linear, x)
    found = torch.autograd.grad(linear(x).square().sum(), [x] if frozen else list(linear.parameters()))
    asked = torch.autograd.grad(plain(x).square().sum(), [x] if frozen else list(plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, asked, strict=True))


def test_nothing_that_learns_needs_no_guard():
    """Gradients are switched on, but neither the weights nor the input ask for one."""
    linear, x = layer().requires_grad_(False), torch.randn(1, 20, IN)
    install(linear)
    assert torch.is_grad_enabled()
    assert turned(linear, x)
    linear.bias.requires_grad_(True)
    assert not turned(linear, x)


@torch.inference_mode()
def test_inference_mode():
    linear, x = layer(), torch.randn(1, 20, IN)
    install(linear)
    assert turned(linear, x)


class Odd(nn.Linear):
    """A subclass, as nn.MultiheadAttention has one for its output."""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.act, self.last = nn.Linear(IN, OUT), nn.GELU(), nn.Linear(OUT, IN)
        self.odd, self.attn = Odd(IN, OUT), nn.MultiheadAttention(IN, 2, kdim=OUT)
        self.square, self.mine = nn.Linear(IN, IN), nn.Linear(IN, OUT)
        self.mine.forward = torch.neg

    def forward(self, x):
        return self.last(self.act(self.first(self.square(x))))


def test_installs_on_plain_layers_only_and_goes_again():
    block = Block()
    before = copy.deepcopy(block.state_dict())
    found = install(block)
    assert found == [block.first, block.last]
    assert install(block) == []
    assert [name for name, module in block.named_modules() if "forward" in module.__dict__] == ["first", "last", "mine"]
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
def test_copies_are_patched_and_own_their_weights(way):
    block, x = Block(), torch.randn(1, 20, IN)
    install(block)
    if way == "deepcopy":
        other = copy.deepcopy(block)
    else:
        file = io.BytesIO()
        torch.save(block, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    before = block(x)
    assert torch.equal(other(x), before)
    assert turned(other.first, x)
    other.first.weight.zero_()
    assert torch.equal(block(x), before)
    assert torch.equal(other.first(x), other.first.bias.expand(1, 20, OUT))


@torch.no_grad()
def test_hooks_go_on_working():
    linear, x = layer(), torch.randn(1, 20, IN)
    seen = []
    linear.register_forward_hook(lambda _module, _args, output: seen.append(output))
    linear.register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    install(linear)
    y = linear(x)
    assert seen[0] is y
    torch.testing.assert_close(y, F.linear(x * 2, linear.weight, linear.bias), rtol=0, atol=1e-5)


@torch.no_grad()
def test_compiled_graph_does_not_ask_for_the_rows():
    """One graph for few rows and for many: the rule leaves no guard on the shape behind."""
    block = Block()
    install(block)
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
    called = {node.target for node in graphs[0].graph.nodes if node.op == "call_function"}
    assert torch._C._nn.linear in called
    assert not called & {torch.mm, torch.addmm}


@pytest.mark.slow
@torch.no_grad()
def test_compiles_to_the_plain_product():
    linear, x = layer(), torch.randn(1, 20, IN)
    plain = linear(x)
    install(linear)
    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), plain)


@torch.no_grad()
@pytest.mark.parametrize("way", ["jit", "export"])
def test_traced_graph_is_the_plain_layer(way):
    linear, x = layer(), torch.randn(1, 20, IN)
    plain = linear(x)
    install(linear)
    traced = torch.jit.trace(linear, x) if way == "jit" else torch.export.export(linear, (x,)).module()
    assert torch.equal(traced(x), plain)
    assert not turned(traced, x)


def test_narrow_needs_no_installing():
    linear, x = layer(), torch.randn(1, 20, IN)
    with torch.no_grad():
        torch.testing.assert_close(narrow(linear, x), linear(x), rtol=0, atol=1e-5)
        assert "forward" not in linear.__dict__
