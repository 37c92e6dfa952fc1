"""Patch embeddings with packed weights: the same numbers as the convolution, only where the rule says so, and never a stale weight."""

import pytest
import torch
import torch.nn.functional as F
from packing import change, uses
from torch import nn

from sparsight.models._kernel import FEW
from sparsight.models._packed import install, uninstall

pytestmark = pytest.mark.usefixtures("each_kernel")

WIDTH = 48


def patcher(**options):
    torch.manual_seed(0)
    return nn.Conv2d(3, WIDTH, **{"kernel_size": (8, 4), "stride": (8, 4), **options})


def ready(size=(32, 24), batch=1, **options):
    """A patch embedding that has seen such images twice, if it takes part at all."""
    conv = patcher(**options)
    install(conv)
    with torch.inference_mode():
        for _ in range(2):
            conv(torch.zeros(batch, 3, *size, dtype=conv.weight.dtype))
    return conv


def exact(conv, x):
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(x.double(), conv.weight.double(), bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("batch", [1, 3])
def test_same_numbers(bias, batch):
    conv, wide = ready(batch=batch, bias=bias), torch.randn(batch, 3, 32, 48)
    images = {"plain": wide[..., :24].contiguous(), "part of a wider one": wide[..., 12:36], "every second column": wide[..., ::2]}
    images["channels last"] = images["plain"].to(memory_format=torch.channels_last)
    for name, x in images.items():
        assert uses(conv, x), name
        y = conv(x)
        assert y.shape == (batch, WIDTH, 4, 6), name
        torch.testing.assert_close(y.double(), exact(conv, x), rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_images_of_another_size_and_many_of_them():
    conv = ready()
    for shape, packs in [
        ((1, 3, 35, 24), False),
        ((1, 3, 32, 26), False),
        ((1, 3, 40, 24), True),
        ((FEW // 24 + 1, 3, 32, 24), False),
    ]:
        x = torch.randn(shape)
        for _ in range(3):
            torch.testing.assert_close(conv(x).double(), exact(conv, x), rtol=0, atol=1e-5)
        assert uses(conv, x) == packs, shape
    one = torch.randn(3, 32, 24)
    assert torch.equal(conv(one), F.conv2d(one, conv.weight, conv.bias, conv.stride))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{"stride": (4, 4)}, {"padding": (4, 2)}, {"padding": "valid", "dilation": 2}, {"groups": 3}, {"dtype": torch.float64}],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(options):
    conv, x = ready(**options), torch.randn(1, 3, 32, 24, dtype=options.get("dtype"))
    assert not uses(conv, x)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups))


@pytest.mark.parametrize(
    "way", ["copy_", "data", "data +=", "rows of data", "new parameter", "load_state_dict", "set to data", "channels last"]
)
def test_a_changed_weight_is_noticed(way):
    conv, x, new = ready(), torch.randn(1, 3, 32, 24), torch.randn(WIDTH, 3, 8, 4)
    with torch.no_grad():
        assert uses(conv, x)
        change(conv, way, new)
        if way == "channels last":
            conv.to(memory_format=torch.channels_last)
        for _ in range(3):
            torch.testing.assert_close(conv(x).double(), exact(conv, x), rtol=0, atol=1e-4)
        assert bool(uses(conv, x)) == (way != "channels last")


def test_gradients_autocast_and_compilers_find_the_convolution():
    conv, x = ready(), torch.randn(1, 3, 32, 24)
    assert not uses(conv, x)
    assert conv(x).requires_grad
    with torch.no_grad():
        with torch.autocast("cpu"):
            assert not uses(conv, x)
        program = torch.export.export(conv, (x,))
        assert any(node.target is torch.ops.aten.conv2d.default for node in program.graph.nodes)
        assert uses(conv, x)


def test_goes_again():
    conv = patcher()
    found = install(conv)
    assert found == [conv]
    assert install(conv) == []
    uninstall(found)
    assert "forward" not in conv.__dict__


def test_wrong_channels_are_the_convolutions_matter():
    with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
        ready()(torch.randn(1, 4, 32, 24))
