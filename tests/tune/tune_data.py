"""A tiny model in a file and more images than the other tools' tests have, for searches that take seconds."""

from pathlib import Path

import torch
from compare_data import ARCHITECTURE, CLASSES, make_model
from PIL import Image
from safetensors.torch import save_file

METHODS = "col_ln,tome,random,resize,compose"


def save_model(folder: Path) -> str:
    """The tiny model's name on the command line."""
    path = folder / "tiny.safetensors"
    save_file(make_model().model.state_dict(), path)
    return f"{ARCHITECTURE}@{path}"


def save_images(folder: Path, count: int, classes=CLASSES, seed: int = 1) -> Path:
    """Smooth random pictures, class by class in turn; the class "" stands for the folder itself."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        place = folder / classes[index % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.rand(6, 6, 3, generator=generator).mul(255).byte().numpy()
        Image.fromarray(pixels).resize((160, 160)).save(place / f"{index:03d}.png")
    return folder
