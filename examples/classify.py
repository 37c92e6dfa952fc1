"""Classify pictures with a pruned model, and say how many patches it took: python examples/classify.py [MODEL] [RECIPE]"""

import sys

import torch
from PIL import Image

import sparsight
from sparsight.demo import demo_images


def main(model="demo", recipe="col_ln:keep=0.5,layers=0/3/6", folder=None):
    loaded = sparsight.load(model)
    handle = sparsight.prune(loaded.model, recipe)
    for file in sorted((folder or demo_images()).rglob("*.jpg")):
        with torch.no_grad():
            chances = loaded.model(loaded.transform(Image.open(file).convert("RGB"))[None]).softmax(dim=-1)[0]
        best = int(chances.argmax())
        name = loaded.classes[best] if loaded.classes else best
        print(
            f"{file.name:16} {name} ({100 * chances[best]:.0f}%), {handle.counts[-1]} of {handle.grid[0] * handle.grid[1]} patches"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
