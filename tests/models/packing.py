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


def uses(module, x):
    """How many packed products a call makes."""
    with torch.autograd.profiler.profile() as found:
        module(x)
    return sum(event.name == "mkl::_mkl_linear" for event in found.function_events)


def exact(linear, x):
    return F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
