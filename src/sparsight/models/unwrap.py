"""Models that hold a vision tower: which attribute it is, so that the model that was given can be pruned whole."""

from __future__ import annotations

from torch import nn

TOWERS = {
    "FeatureGetterNet": "model",  # timm's features_only=True
    "TimmModel": "trunk",  # a timm model as image tower of open_clip
    "CLIP": "visual",
    "CustomTextCLIP": "visual",
    "CoCa": "visual",
    "PeftModel": "base_model",
    "BaseTuner": "model",  # LoRA and its relatives, inside a PeftModel
}
"""Attribute of the vision tower by the name of the class around it."""


def unwrap(model: nn.Module) -> nn.Module:
    """The vision tower of a model that wraps one, however deep; any other model itself."""
    for kind in type(model).__mro__:
        tower = getattr(model, TOWERS[kind.__name__], None) if kind.__name__ in TOWERS else None
        if isinstance(tower, nn.Module):
            return unwrap(tower)
    return model
