"""What the tests of blocks as lines share."""

import torch
from zoo import outputs

from sparsight.models._lines import Lines
from sparsight.prune import family_of

STRAIGHT = [
    *("timm-token", "timm-registers", "timm-noclass-map", "timm-layerscale", "timm-dynamic", "vit", "deit"),
    *("dinov2", "dinov2-registers", "clip", "clip-vision", "siglip", "siglip-vision"),
    *("timm-qknorm", "timm-eva", "timm-eva02", "timm-dinov3", "timm-rope-mixed", "timm-beit", "timm-beit-shared"),
    *("dinov2-model-swiglu", "dinov3", "dinov3-plain", "openclip"),
]
COUNTED = "col_ln:keep=0.5,layers=1/2"
MERGING = "tome:remove=3,layers=1/2"


def both(name, model, x):
    """All outputs along the lines, and without them."""
    family = family_of(model)
    found, lines = outputs(name, model, x), family.lines
    family.lines = Lines()
    plain = outputs(name, model, x)
    family.lines = lines
    return found, plain


def assert_same(found, plain):
    for key in plain:
        torch.testing.assert_close(found[key], plain[key], rtol=1e-9, atol=1e-9)
