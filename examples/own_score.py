"""A score of one's own inside a method that is there, compared with another by agreement: python examples/own_score.py"""

import torch
from PIL import Image

import sparsight
from sparsight.demo import demo_images


@sparsight.register_score("key_length")
def key_length(k, prefix):
    """Mean over heads of the keys' norms. k [B, H, P+N, D] -> [B, N]."""
    return k[:, :, prefix:].norm(dim=-1).mean(dim=1)


def main():
    loaded = sparsight.load("demo")
    images = torch.stack([loaded.transform(Image.open(file).convert("RGB")) for file in sorted(demo_images().rglob("*.jpg"))])
    with torch.no_grad():
        whole = loaded.model(images).argmax(dim=1)
        for score in ("key_length", "col_ln"):
            with sparsight.prune(loaded.model, f"compose:score={score},keep=0.5,layers=0/3/6"):
                print(f"{score:12} {(loaded.model(images).argmax(dim=1) == whole).float().mean():.2f} agree")


if __name__ == "__main__":
    main()
