"""Exported files of families with rotary positions, relative bias or attention made again: as PyTorch, at another batch size."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

import sparsight
from sparsight.load.models import Loaded
from sparsight.speed.engines import open_exported
from sparsight.speed.export import export

SIDE = 32
RECIPE = "col_ln:keep=0.6,layers=0/1"


def of_timm(name: str) -> Callable[[], nn.Module]:
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return lambda: timm.create_model(name, **sizes)


def dinov3() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, image_size=SIDE, patch_size=8, num_register_tokens=2))


def open_clip() -> nn.Module:
    from open_clip.model import CLIP

    text = {"context_length": 3, "vocab_size": 11, "width": 32, "heads": 2, "layers": 1}
    tower: nn.Module = CLIP(16, {"image_size": SIDE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3}, text).visual
    return tower


MODELS = {
    "timm DINOv3": of_timm("vit_small_patch16_dinov3"),
    "EVA-02": of_timm("eva02_tiny_patch14_224"),
    "BEiT": of_timm("beit_base_patch16_224"),
    "DINOv3": dinov3,
    "open_clip": open_clip,
}


def logits(out: object) -> Tensor:
    """The output that files have: logits, or what stands in their place."""
    found = getattr(out, "pooler_output", out)
    assert isinstance(found, Tensor)
    return found


pytestmark = pytest.mark.product


@pytest.mark.parametrize(("format", "ending"), [("onnx", "onnx"), ("openvino", "xml"), ("torch-export", "pt2")])
@pytest.mark.parametrize("name", MODELS)
def test_same_as_pytorch(name: str, format: str, ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = Loaded(
        "tiny", MODELS[name]().eval(), lambda image: to_tensor(image.convert("RGB").resize((SIDE, SIDE))), None, (SIDE, SIDE)
    )
    file = tmp_path / f"m.{ending}"
    done = export(loaded, RECIPE, file, format=format, limit=4, kept=True)
    assert done.same_kept == 1
    images = torch.rand(5, 3, SIDE, SIDE)
    with torch.no_grad(), sparsight.prune(loaded.model, RECIPE) as handle:
        wanted = logits(loaded.model(images))
        kept = [plan.keep for plan in handle.sources()]
    got = open_exported(file)(images)
    assert any(found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-4) for found in got)
    assert all(torch.equal(a, b) for a, b in zip(kept, got[-len(kept) :], strict=True))
