"""Make the embedded demo weights from the fp16 checkpoint, and measure both on a folder of images.

    python benchmarks/make_demo_weights.py FP16.safetensors CLASSES.json [--out INT8.safetensors] [--test DIR]

Every 2-D or larger weight of a block becomes int8 with one scale per output channel; the scale is the one with the least
squared error among shrunken ranges. Patch projection, head, norms, biases, LayerScale, positions and class token stay fp16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsight.demo import ARCHITECTURE, IMAGE_SIZE, SCALE, WEIGHTS, dequantise, quantise


def compress(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to store: int8 with scales for the matrices of the blocks, the others as they are."""
    stored = {}
    for name, tensor in state.items():
        if name.startswith("blocks.") and tensor.dim() > 1:
            stored[name], stored[name + SCALE] = quantise(tensor)
        else:
            stored[name] = tensor
    return stored


@torch.inference_mode()
def measure(states: dict[str, dict[str, Tensor]], classes: list[str], folder: Path, interpolation: str) -> dict[str, float]:
    """Top-1 in percent of each state dict on all images of the folder, and agreement of the last with the first."""
    import timm
    from timm.data import create_transform

    from sparsight.data.images import align, batches, open_folder

    models = {}
    for name, state in states.items():
        models[name] = timm.create_model(ARCHITECTURE, img_size=IMAGE_SIZE, num_classes=len(classes), dynamic_img_size=True).eval()
        models[name].load_state_dict(state)
    transform = create_transform((3, IMAGE_SIZE, IMAGE_SIZE), interpolation=interpolation, crop_pct=224 / 256)
    data = align(open_folder(folder), classes)
    assert data.labels is not None
    labels = torch.tensor(data.labels)
    guesses = {name: torch.full_like(labels, -1) for name in models}
    for images, where in batches(data, transform, 32):
        for name, model in models.items():
            guesses[name][where] = model(images).argmax(1)
    first, *_, last = guesses.values()
    result = {name: 100 * (guess == labels).double().mean().item() for name, guess in guesses.items()}
    return {**result, "agreement": 100 * (first == last).double().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp16", type=Path)
    parser.add_argument("classes", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--test", type=Path, help="folder of class folders to measure on")
    parser.add_argument("--interpolation", default="bicubic")
    given = parser.parse_args()
    state, classes = load_file(given.fp16), json.loads(given.classes.read_text())
    stored = compress(state)
    save_file(stored, given.out, {"architecture": ARCHITECTURE, "classes": json.dumps(classes)})
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.2f} MB")
    if given.test:
        wide = {name: tensor.float() for name, tensor in state.items()}
        print(measure({"fp16": wide, "int8": dequantise(stored)}, classes, given.test, given.interpolation))


if __name__ == "__main__":
    main()
