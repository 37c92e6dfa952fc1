"""Do compiled, exported and quantised models keep the same tokens as the eager one, on real images?

    python benchmarks/same_tokens.py --out benchmarks/results/same_tokens_cpu.json

The embedded demo model on the embedded images. For every recipe and engine: share of images whose kept sets are the same at every site, share of
equal tokens after the last site, and the largest difference of the logits over images with the same sets.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from torch import Tensor

import sparsight
from sparsight.data.images import open_folder
from sparsight.load.models import demo_images, load
from sparsight.speed.export import read_images

RECIPES = ("class_attention:keep=0.7", "col_ln:keep=0.7", "renyi:keep=0.7", "evit:keep=0.7", "tome:keep=0.7,layers=3/6/9")
ENGINES = {
    "torch.compile": ("inductor", None),
    "onnxruntime": ("onnxruntime", None),
    "onnxruntime, int8": ("onnxruntime", "int8"),
    "OpenVINO": ("openvino", None),
    "OpenVINO, bf16": ("openvino", "bf16"),
}


def compare(recipe: str, images: Tensor, engine: str, precision: str | None) -> dict[str, float]:
    """One recipe in one engine against eager PyTorch."""
    model = load("demo").model
    with torch.no_grad(), sparsight.prune(model, recipe) as handle:
        wanted, kept = model(images), [plan.keep for plan in handle.sources()]
        fast = sparsight.compile(model, images, engine, precision=precision)
    got = fast(images)
    shares = [(a.unsqueeze(2) == b.unsqueeze(1)).any(dim=2).float().mean(dim=1) for a, b in zip(kept, fast.keep, strict=True)]
    same = torch.stack(shares).amin(dim=0) == 1
    apart = (wanted - got).abs().amax(dim=1)
    return {
        "same_kept": float(same.float().mean()),
        "overlap": float(shares[-1].mean()),
        "difference": float(apart[same].max()) if same.any() else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    images = read_images(load("demo"), open_folder(demo_images()).paths)
    rows = []
    for recipe in RECIPES:
        for name, (engine, precision) in ENGINES.items():
            rows.append({"recipe": recipe, "engine": name, "images": len(images), **compare(recipe, images, engine, precision)})
            print(rows[-1], flush=True)
    facts = {"machine": platform.machine(), "torch": torch.__version__}
    given.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    lines = [
        "| recipe | engine | same set in % of the images | same tokens % | largest difference of the logits |",
        "| --- " * 5 + "|",
    ]
    lines += [
        f"| {row['recipe']} | {row['engine']} | {100 * row['same_kept']:.0f} | {100 * row['overlap']:.1f} | {row['difference']:.1e} |"
        for row in rows
    ]
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
