"""Save a pruned model with what was measured of it, and load it pruned: python examples/save_and_load.py [FOLDER]"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import torch

import sparsight


def main(folder=None):
    loaded = sparsight.load("demo")
    whole = sparsight.macs(loaded.model, None, loaded.image_size) / 1e9
    handle = sparsight.prune(loaded.model, "col_ln:keep=0.5,layers=0/3/6")
    mine = sparsight.macs(sparsight.load("demo").model, handle.recipe, loaded.image_size) / 1e9
    table = [{"recipe": "unpruned", "GMACs": whole}, {"recipe": str(handle.recipe), "GMACs": mine}]
    place = sparsight.save_pretrained(loaded, folder or Path(mkdtemp()) / "mine", table)
    again, images = sparsight.load(str(place)), torch.randn(2, 3, *loaded.image_size)
    with torch.no_grad():
        print(place, again.recipes[0], "the same" if torch.equal(again.model(images), loaded.model(images)) else "not the same")


if __name__ == "__main__":
    main(*sys.argv[1:])
