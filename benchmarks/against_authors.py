"""Speed and outputs beside the authors' own code of ToMe and EViT, where a reader has a checkout of it.

    git clone https://github.com/facebookresearch/ToMe && git clone https://github.com/youweiliang/evit
    python benchmarks/against_authors.py --tome ToMe --evit evit --out against.json

Both get the same random weights of timm's ViT-S/16 and the same images. Reported: the largest difference of the logits, and the ratio of times
within pairs of runs, the order changing. Nothing of either repository is part of this one; a path that is not given is left out.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import sparsight
from sparsight.speed.timing import race

Forward = Callable[[Tensor], Tensor]


def theirs_tome(path: Path, model: nn.Module, remove: int) -> Forward:
    """Their patch on a copy of the model."""
    sys.path.insert(0, str(path))
    patched = copy.deepcopy(model)
    importlib.import_module("tome.patch.timm").apply_patch(patched, prop_attn=True)
    patched.r = remove
    return patched


def theirs_evit(path: Path, model: nn.Module, keep: float, layers: tuple[int, ...]) -> Forward:
    """Their model with the same weights."""
    sys.path.insert(0, str(path))
    rates = tuple(keep if layer in layers else 1.0 for layer in range(12))
    found = importlib.import_module("evit").EViT(
        patch_size=16, embed_dim=384, depth=12, num_heads=6, mlp_ratio=4, qkv_bias=True, keep_rate=rates, fuse_token=True
    )
    found.load_state_dict(model.state_dict())
    return found.eval()


def compare(name: str, ours: Forward, theirs: Forward, images: Tensor, seconds: float) -> dict[str, object]:
    with torch.inference_mode():
        apart = float((ours(images) - theirs(images)).abs().max())
        gain = race(theirs, ours, images, seconds).speedup
    print(f"{name}, batch {len(images)}: logits differ by {apart:.1e}; ours is {gain} times as fast", flush=True)
    return {"method": name, "batch": len(images), "difference": apart, "speedup": gain.median, "quartiles": [gain.low, gain.high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tome", type=Path, help="checkout of facebookresearch/ToMe")
    parser.add_argument("--evit", type=Path, help="checkout of youweiliang/evit")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.tome is None and given.evit is None:
        parser.error("give at least one of --tome and --evit")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224").eval().to(given.device)
    rows = []
    for batch in map(int, given.batches.split(",")):
        images = torch.randn(batch, 3, 224, 224, device=given.device)
        ours = copy.deepcopy(model)
        if given.tome is not None:
            with sparsight.prune(ours, "tome:remove=13,layers=all"):
                rows.append(compare("ToMe, r=13", ours, theirs_tome(given.tome, model, 13), images, given.seconds))
        if given.evit is not None:
            theirs = theirs_evit(given.evit, model.cpu(), 0.7, (3, 6, 9))
            model.to(given.device)
            with sparsight.prune(ours, "evit:keep=0.7,layers=3/6/9"):
                rows.append(compare("EViT, keep 0.7", ours, theirs.to(given.device), images, given.seconds))  # type: ignore[attr-defined]
    if given.out is not None:
        facts = {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": given.device,
        }
        given.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
