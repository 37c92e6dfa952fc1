"""A tiny ViT, a few generated images of three classes, and short runs of training with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sparsight.load.models import Loaded, timm_transform
from sparsight.runs.sweep import Step

CLASSES = ("cat", "dog", "owl")
SIDE = 64
RECIPE = "evit:keep=0.6,layers=1/2"
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "device": "cpu", "log_every": 1}


def tiny(classes: int = 3, names: tuple[str, ...] | None = CLASSES) -> Loaded:
    """timm's smallest ViT, for images of 64 pixels: 16 patches, class token."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=SIDE, num_classes=classes).eval()
    return Loaded("tiny", model, timm_transform(model), list(names) if names else None, (SIDE, SIDE))


def draw(folder: Path, classes: tuple[str, ...] = CLASSES, each: int = 5, seed: int = 0) -> Path:
    """Pictures whose classes differ in colour."""
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = torch.rand(5, 5, 3, generator=generator).mul(120)
            pixels[..., label % 3] += 110
            Image.fromarray(pixels.byte().numpy()).resize((80, 72)).save(folder / name / f"{index}.png")
    return folder


class StopAt:
    """Listens to a run and breaks it off after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, news: Step) -> None:
        if news.unit == "steps" and news.done == self.step:
            raise KeyboardInterrupt
