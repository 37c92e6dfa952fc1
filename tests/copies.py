"""Copies of models, as people make them."""

import copy
import io

import torch
from torch import nn


def copied(model: nn.Module, way: str) -> nn.Module:
    """By "deepcopy", or else written and read as a whole."""
    if way == "deepcopy":
        return copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    found: nn.Module = torch.load(file, weights_only=False)
    return found
