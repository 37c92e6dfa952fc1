# %% [markdown]
# # My ViT
#
# From a model of timm or transformers to a pruned one that is measured and saved. Here it is the demo model, so nothing is downloaded; put
# `sparsight.load("vit_small_patch16_224")`, a folder, or your own module in its place.

# %%
import tempfile

import torch
from PIL import Image

import sparsight
from sparsight.demo import demo_images

loaded = sparsight.load("demo")
photos = sorted(demo_images().rglob("*.jpg"))
images = torch.stack([loaded.transform(Image.open(photo).convert("RGB")) for photo in photos])
with torch.no_grad():
    before = loaded.model(images).argmax(dim=1)
print([loaded.classes[index] for index in before.tolist()])

# %% [markdown]
# ## Prune
#
# One line. The model's call does not change, and the handle tells what happened in the last forward.

# %%
handle = sparsight.prune(loaded.model, "col_ln:keep=0.7,layers=0/3/6")
with torch.no_grad():
    after = loaded.model(images).argmax(dim=1)
print(handle)
print(
    f"{int((before == after).sum())} of {len(images)} answers are the same, on {handle.counts[-1]} of {handle.grid[0] * handle.grid[1]} patches"
)

# %% [markdown]
# ## See which patches stay
#
# `plans` say for every site which tokens survive. `sources` count all sites together, over the patches of the picture.

# %%
kept = torch.zeros(handle.grid[0] * handle.grid[1], dtype=torch.bool)
kept[handle.sources()[-1].keep[0]] = True
for row in kept.view(handle.grid).tolist():
    print("".join("# " if patch else ". " for patch in row))
handle.remove()

# %% [markdown]
# ## Choose
#
# Three methods at the same budget, by work and by agreement with the unpruned model. `sparsight.tune` searches all of them on your images;
# `sparsight compare` makes a page with intervals and times.

# %%
for recipe in ("random:keep=0.5,layers=0/3/6", "evit:keep=0.5,layers=0/3/6", "col_ln:keep=0.5,layers=0/3/6"):
    gmacs = sparsight.macs(loaded.model, recipe, loaded.image_size) / 1e9
    with sparsight.prune(loaded.model, recipe), torch.no_grad():
        agree = (loaded.model(images).argmax(dim=1) == before).float().mean()
    print(f"{recipe:32}  {gmacs:.2f} GMACs  {100 * agree:.0f}% agree")

# %% [markdown]
# ## Save it
#
# The folder holds weights, recipe and model card. Loaded, the model is pruned again.

# %%
with tempfile.TemporaryDirectory() as name:
    sparsight.prune(loaded.model, "col_ln:keep=0.5,layers=0/3/6").save(f"{name}/mine")
    again = sparsight.load(f"{name}/mine")
    with torch.no_grad():
        print(torch.equal(again.model(images), loaded.model(images)), *again.recipes)
