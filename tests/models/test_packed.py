"""Linear layers with packed weights: the same numbers, only where the rule says so, and never a stale weight."""

import threading

import pytest
import torch
import torch.nn.functional as F
from packing import IN, OUT, change, exact, layer, ready, uses
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from sparsight.models import _packed
from sparsight.models._kernel import FEW
from sparsight.models._packed import LEAST, Layer, Store, install

pytestmark = pytest.mark.usefixtures("each_kernel")


def inputs(rows):
    """Tensors with this many rows of IN channels, in several shapes and memory layouts."""
    draw = torch.Generator().manual_seed(rows)
    x, wide = torch.randn(rows, IN, generator=draw), torch.randn(1, rows, 2 * IN, generator=draw)
    found = {
        "matrix": x,
        "batch of one": x[None],
        "transposed": x.t().contiguous().t(),
        "part of the channels": wide[..., IN:],
        "every second channel": wide[..., ::2],
        "four dimensions": x.view(1, rows, 1, IN),
    }
    if rows % 2 == 0:
        found["tokens first"] = x.view(rows // 2, 2, IN).transpose(0, 1)
        found["without the first token"] = torch.cat([x[:2].view(2, 1, IN), x.view(2, rows // 2, IN)], dim=1)[:, 1:]
    return found


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 33, 64, 91, 257, 512, 513])
def test_same_numbers_and_packed_by_the_rule(rows, bias):
    linear = ready(bias, rows)
    for name, x in inputs(rows).items():
        y = linear(x)
        torch.testing.assert_close(y.double(), exact(linear, x), rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert y.shape == (*x.shape[:-1], OUT), name
        assert uses(linear, x) == (LEAST <= rows <= FEW), name


@torch.inference_mode()
def test_packs_in_the_second_forward_with_as_many_rows():
    linear = layer()
    install(linear)
    few, more, many = (torch.randn(1, rows, IN) for rows in (20, 30, 2 * FEW))
    assert [uses(linear, x) for x in (few, more, few, more)] == [0, 0, 0, 0]
    assert [uses(linear, x) for x in (more, many, more, few, more, few, few, more)] == [1, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("inference", [False, True], ids=["ordinary", "made-in-inference-mode"])
@pytest.mark.parametrize("way", ["copy_", "data", "data +=", "rows of data", "new parameter", "load_state_dict", "set to data"])
def test_a_changed_weight_is_noticed(way, inference):
    with torch.inference_mode(inference), torch.no_grad():
        linear, x, new = ready(), torch.randn(20, IN), torch.randn(OUT, IN)
        assert linear.weight.is_inference() == inference
        assert uses(linear, x)
        change(linear, way, new)
        for _ in range(3):
            torch.testing.assert_close(linear(x).double(), exact(linear, x), rtol=0, atol=1e-4)
        assert uses(linear, x)


@torch.inference_mode()
def test_a_changed_bias_needs_no_notice():
    linear, x = ready(), torch.randn(20, IN)
    linear.bias.data.fill_(3)
    torch.testing.assert_close(linear(x).double(), exact(linear, x), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_of_number_stay_plain(dtype):
    linear, x = ready(dtype=dtype), torch.randn(1, 20, IN, dtype=dtype)
    assert not uses(linear, x)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


@torch.no_grad()
@pytest.mark.parametrize("why", ["no kernel", "autocast", "subclass", "parametrized", "not contiguous"])
def test_stays_plain(why, monkeypatch):
    linear, x = ready(), torch.randn(1, 20, IN)
    assert uses(linear, x)
    if why == "no kernel":
        monkeypatch.setattr(_packed, "kernel", lambda: None)
    if why == "subclass":
        x = x.as_subclass(type("Other", (torch.Tensor,), {}))
    if why == "parametrized":
        nn.utils.parametrizations.weight_norm(linear)
        assert "forward" in linear.__dict__
    if why == "not contiguous":
        linear.weight = nn.Parameter(torch.randn(IN, OUT).t())
    with torch.autocast("cpu", enabled=why == "autocast"):
        assert [uses(linear, x) for _ in range(3)] == [0, 0, 0]
        torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias), rtol=0, atol=0)


class Quantised(torch.Tensor):
    """A weight as quantisation tools make them: a tensor without storage that answers operations itself."""

    @staticmethod
    def __new__(cls, plain):
        return torch.Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain):
        self.plain = plain

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = [arg.plain if isinstance(arg, cls) else arg for arg in args]
        result = func(*args, **(kwargs or {}))
        return cls(result) if func is torch.ops.aten.detach.default else result


@torch.no_grad()
def test_weights_of_another_kind_stay_as_they_are():
    linear, x = ready(), torch.randn(1, 20, IN)
    expected = F.linear(x, linear.weight, linear.bias)
    linear.weight = nn.Parameter(Quantised(linear.weight.detach().clone()), requires_grad=False)
    assert [uses(linear, x) for _ in range(3)] == [0, 0, 0]
    assert torch.equal(linear(x), expected)


def test_empty_and_wrong_inputs_are_the_plain_layers_matter():
    linear = ready()
    with torch.no_grad():
        assert linear(torch.randn(2, 0, IN)).shape == (2, 0, OUT)
        for shape in [(20, IN // 2), (8 * IN,), (5, IN + 1)]:
            with pytest.raises(RuntimeError, match="shape"):
                linear(torch.randn(shape))


@pytest.mark.parametrize("frozen", [False, True], ids=["weights-learn", "input-learns"])
def test_gradients_are_those_of_the_plain_layer(frozen):
    plain = layer().requires_grad_(not frozen)
    linear = ready().requires_grad_(not frozen)
    x = torch.randn(2, 10, IN, requires_grad=frozen)
    assert not uses(linear, x)
    found = torch.autograd.grad(linear(x).square().sum(), [x] if frozen else list(linear.parameters()))
    asked = torch.autograd.grad(plain(x).square().sum(), [x] if frozen else list(plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, asked, strict=True))


def test_nothing_that_learns_needs_no_guard():
    """Gradients are switched on, but neither the weights nor the input ask for one."""
    linear, x = ready().requires_grad_(False), torch.randn(1, 20, IN)
    assert torch.is_grad_enabled()
    assert uses(linear, x)
    linear.bias.requires_grad_(True)
    assert not uses(linear, x)


@pytest.mark.parametrize("way", ["torch.func.jvp", "dual numbers", "torch.func.grad", "torch.vmap"])
def test_transformed_calls_are_the_plain_layers(way):
    linear, x = ready().requires_grad_(False), torch.randn(20, IN)
    found = []

    def dual(x):
        with forward_ad.dual_level():
            found.append(forward_ad.unpack_dual(linear(forward_ad.make_dual(x, x))).tangent)

    ways = {
        "torch.func.jvp": lambda x: found.append(torch.func.jvp(linear, (x,), (x,))[1]),
        "dual numbers": dual,
        "torch.func.grad": lambda x: found.append(torch.func.grad(lambda x: linear(x).square().sum() / 2)(x)),
        "torch.vmap": lambda x: found.append(torch.vmap(linear)(x[None].expand(3, -1, -1))[2]),
    }
    assert uses(linear, x)
    assert not uses(ways[way], x)
    plain = F.linear(x, linear.weight, linear.bias)
    wanted = {"torch.func.grad": plain @ linear.weight, "torch.vmap": plain}.get(way, F.linear(x, linear.weight))
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_counters_of_operations_see_the_plain_product():
    linear, x = ready(), torch.randn(20, IN)
    with FlopCounterMode(display=False) as counter:
        assert not uses(linear, x)
    assert counter.get_total_flops() == 2 * 20 * IN * OUT
    assert uses(linear, x)


@torch.no_grad()
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", ["jit", "export"])
def test_traced_graph_is_the_plain_layer(way):
    linear, x = ready(), torch.randn(1, 20, IN)
    traced = torch.jit.trace(linear, x) if way == "jit" else torch.export.export(linear, (x,)).module()
    assert torch.equal(traced(x), F.linear(x, linear.weight, linear.bias))
    assert not uses(traced, x)


def test_threads_with_different_rows():
    linear = layer()
    install(linear)
    wrong = []

    def work(rows):
        x = torch.randn(rows, IN, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            wanted = exact(linear, x)
            for _ in range(200):
                if not torch.allclose(linear(x).double(), wanted, atol=1e-5):
                    wrong.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (20, 30, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_needs_no_installing():
    linear, x = layer(), torch.randn(1, 20, IN)
    with torch.no_grad():
        torch.testing.assert_close(Layer(linear, Store()).of(x), linear(x), rtol=0, atol=1e-5)
        assert "forward" not in linear.__dict__
