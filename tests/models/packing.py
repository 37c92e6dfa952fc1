"""Layers with packed weights, and how often they use them: for the tests of both kinds."""

import torch
import torch.nn.functional as F
from torch import nn

from sparsight.models._packed import install

IN, OUT = 96, 200


def layer(bias=True, **options):
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=bias, **options)


def ready(bias=True, rows=20, **options):
    """A layer that has seen so many rows twice, so that its weight is packed for them."""
    linear = layer(bias, **options)
    install(linear)
    with torch.inference_mode():
        for _ in range(2):
            linear(torch.zeros(rows, IN, dtype=linear.weight.dtype))
    return linear


def change(module, way, new):
    """Give a layer another weight, in one of the ways in which people do."""
    if way == "copy_":
        module.weight.copy_(new)
    if way == "data":
        module.weight.data.copy_(new)
    if way == "data +=":
        module.weight.data += new
    if way == "rows of data":
        module.weight.data[::2] = 0
    if way == "new parameter":
        module.weight = nn.Parameter(new)
    if way == "load_state_dict":
        module.load_state_dict({"weight": new, "bias": module.bias})
    if way == "set to data":
        module.weight.data = new


def uses(module, x):
    """How many packed products a call makes."""
    with torch.autograd.profiler.profile() as found:
        module(x)
    return sum(event.name in ("mkl::_mkl_linear", "mkldnn::_linear_pointwise") for event in found.function_events)


def exact(linear, x):
    return F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
