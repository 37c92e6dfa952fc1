"""Models whose attention needs a full grid: why no token can leave them, and what can be done instead."""

from __future__ import annotations

from torch import nn

PLAIN = "prune a plain Vision Transformer of that size, such as deit_small_patch16_224 or vit_base_patch16_224"

WINDOWS = (
    "it attends within windows of its grid and joins 2 x 2 neighbours between its stages, so every place has to stay filled: a token "
    "that is dropped would have to be masked, which saves no computation (similarity pruning on Swin-T included, whose paper does not "
    f"say how tokens leave there); {PLAIN}"
)
UNITS = (
    "it attends within mask units and pools them to single tokens, so only whole units could leave, as they do in its pre-training; "
    f"that is no choice of tokens; {PLAIN}"
)
GRID = f"it attends within windows of its grid and adds relative positions of the whole grid, so every place has to stay filled; {PLAIN}"

REASONS = {
    "SwinTransformer": WINDOWS,
    "SwinTransformerV2": WINDOWS,
    "SwinTransformerV2Cr": WINDOWS,
    "SwinPreTrainedModel": WINDOWS,
    "Swinv2PreTrainedModel": WINDOWS,
    "Hiera": UNITS,
    "HieraDet": UNITS,
    "HieraPreTrainedModel": UNITS,
    "VisionTransformerSAM": GRID,
}
"""Why the models of a class cannot be pruned, by the class's name."""


def reason(model: nn.Module) -> str | None:
    """Why tokens cannot leave this model, None if it is not one of those."""
    return next((REASONS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in REASONS), None)
