"""Every method with a fixed budget in every engine: outputs and kept tokens of PyTorch, at another batch size."""

import pytest
import timm
import torch
from torch import nn

import sparsight
from sparsight.errors import PruneError

pytestmark = pytest.mark.product
SIDE = 32
SPECIAL = {
    "tca": ["tca:keep=0.8,layers=0/1"],
    "similarity": ["similarity:keep=0.6,layers=0/1", "similarity:keep=0.6,layers=1,metric=l2", "similarity:tokens=9,layers=input"],
    "compose": [f"compose:keep=0.6,layers=1,score={score},select={select},reduce={reduce}" for score, select, reduce in (
        ("class_attention", "topk", "fuse_rest"), ("none", "bipartite", "merge"), ("col_ln", "diverse", "drop"), ("shannon", "topk", "drop"))],
}  # fmt: skip


def recipes() -> list[str]:
    """One recipe of every method that works in the blocks of a ViT."""
    found = []
    for name in (method.name for method in sparsight.methods()):
        options = SPECIAL.get(name) or [f"{name}:{budget}" for budget in ("keep=0.6,layers=0/1", "keep=0.6,layers=1", "tokens=9")]
        for option in options:
            try:
                with sparsight.prune(vit(), option, **learned(option)) as handle:
                    if not handle.recipe.adaptive:
                        found.append(option)
            except PruneError:
                continue
            if name not in SPECIAL:
                break
    return found


def learned(recipe: str) -> dict[str, str]:
    """Random weights for methods that learn some."""
    return {"weights": "random"} if sparsight.parse(recipe).weights else {}


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(8)  # attention that is not all but even, so that rounding does not choose
    return model


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("recipe", recipes())
def test_same_as_pytorch(recipe: str, engine: str) -> None:
    model, images = vit(), torch.rand(3, 3, SIDE, SIDE)
    handle = sparsight.prune(model, recipe, **learned(recipe))
    fast = sparsight.compile(model, images[:1], engine)
    with torch.no_grad():
        wanted = model(images)
    assert torch.allclose(fast(images), wanted, atol=1e-4)
    assert all(torch.equal(ours, plan.keep) for ours, plan in zip(fast.keep, handle.sources(), strict=True))
