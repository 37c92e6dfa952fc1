"""A tiny timm model with random weights and a handful of generated images, for the tests of tools and command line."""

from pathlib import Path

import torch
from PIL import Image

CLASSES = ("cat", "dog", "owl")
COUNT = 6
ARCHITECTURE = "test_vit"
SIZE = 160


def make_model(classes=3):
    import timm

    from sparsight.load.models import Loaded, timm_transform

    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=classes).eval()
    return Loaded("tiny", model, timm_transform(model), list(CLASSES) if classes else None, (SIZE, SIZE))


def make_images(folder: Path, classes=CLASSES):
    """Smooth random pictures, the same number in each class folder; the class "" stands for the folder itself."""
    generator = torch.Generator().manual_seed(0)
    for index in range(COUNT):
        place = folder / classes[index % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.rand(6, 6, 3, generator=generator).mul(255).byte().numpy()
        Image.fromarray(pixels).resize((200, 180)).save(place / f"{index}.png")
    return folder
