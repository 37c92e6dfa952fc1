"""Packed weights in every family: blocks and patch embedding give what the plain layers give."""

import copy

import pytest
import torch
from torch import Tensor
from zoo import ZOO, images, made, outputs

import sparsight
from sparsight.models._kernel import kernel

pytestmark = pytest.mark.skipif(kernel() is None, reason="this torch has no packed product")

RECIPE = "col_ln:keep=0.5,layers=1/2"


def single(x):
    """Inputs in float32."""
    if isinstance(x, dict):
        return {key: single(value) for key, value in x.items()}
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


@torch.inference_mode()
@pytest.mark.parametrize("name", list(ZOO))
def test_same_with_and_without(name):
    model, x = copy.deepcopy(made(name)).float(), single(images(name, 1))
    with sparsight.prune(model, RECIPE, pack=False) as handle:
        plain = outputs(name, model, x)
        assert handle.packed == 0
    with sparsight.prune(model, RECIPE) as handle:
        for _ in range(3):
            found = outputs(name, model, x)
        assert handle.packed
    for key, wanted in plain.items():
        torch.testing.assert_close(found[key], wanted, rtol=1e-4, atol=1e-4)
