"""Feature maps of a pruned ViT beside those of the whole one: python examples/feature_maps.py [OUT.png]"""

import sys

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

import sparsight
from sparsight.load.models import demo_images, load

demo = load("demo")
files = sorted(demo_images().glob("*/*.jpg"))[:5]
pictures = [Image.open(file).convert("RGB").resize((224, 224)) for file in files]
images = torch.stack([demo.transform(picture) for picture in pictures])
whole = demo.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0].detach()
columns = {"whole model": whole}
for recipe in ("col_ln:keep=0.5,layers=6", "col_ln:keep=0.8,layers=3/6/9", "tome:remove=14,layers=all"):
    with sparsight.prune(demo.model, recipe) as handle, torch.no_grad():
        maps = demo.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    alike = cosine_similarity(maps, whole, dim=1).mean()
    columns[f"{recipe}\n{handle.counts[-1]} of {maps[0, 0].numel()} tokens, cosine {alike:.2f}"] = maps

figure, cells = plt.subplots(len(files), 5, figsize=(10, 2 * len(files)), layout="constrained")
for row, picture in enumerate(pictures):
    cells[row, 0].imshow(picture)
    patches = whole[row].flatten(1).T
    axes, centre = torch.pca_lowrank(patches, q=3)[2], patches.mean(0)  # the whole map's three strongest directions as colours
    low, high = (((patches - centre) @ axes).quantile(q, dim=0) for q in (0.02, 0.98))
    for column, (name, maps) in enumerate(columns.items(), start=1):
        cells[row, column].imshow((((maps[row].movedim(0, -1) - centre) @ axes - low) / (high - low)).clamp(0, 1))
        cells[0, column].set_title(name, fontsize=7)
for cell in cells.flat:
    cell.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "feature_maps.png", dpi=100)
