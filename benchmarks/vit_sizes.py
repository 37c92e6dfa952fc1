"""Realised speed-up of ViT-S/B/L at 224 and 384 pixels, batch 1 and 32, against the MAC ratio; or of other families.

    python benchmarks/vit_sizes.py --out benchmarks/results/vit_sizes_cpu.json
    python benchmarks/vit_sizes.py --models others --sides 224 --out benchmarks/results/vit_families_cpu.json
    python benchmarks/vit_sizes.py --device cuda --precision bf16 --backend compile --out benchmarks/results/vit_sizes_cuda.json

Random weights: which tokens go does not change the time. Every pruned forward is timed beside an unpruned one, as
`sparsight bench` does it. Batches whose unpruned forward takes more than --long seconds are timed with one recipe, those that take more
than --most are left out, and said so. The files are written after every size, so nothing is lost when it is stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import open_clip
import timm
import torch
import transformers
from torch import nn

from sparsight.load.models import Loaded
from sparsight.speed.bench import bench
from sparsight.speed.bench_result import Bench

SIZES = {"ViT-S/16": "vit_small_patch16_224", "ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
OTHERS = {
    "DINOv3 ViT-S/16 (timm)": "vit_small_patch16_dinov3",
    "EVA-02 S/14 (timm)": "eva02_small_patch14_224",
    "BEiT-B/16 (timm)": "beit_base_patch16_224",
    "DINOv3 ViT-S/16 (transformers)": "DINOv3ViTModel",
    "CLIP ViT-B/16 (transformers)": "CLIPVisionModel",
    "CLIP ViT-B/16 (open_clip)": "ViT-B-16",
}
RECIPES = ["class_attention:keep=0.7,layers=3/6/9", "col_ln:keep=0.7,layers=3/6/9", "col_ln:keep=0.5,layers=3/6/9"]


def made(name: str, side: int) -> nn.Module:
    """A model with random weights."""
    if "(transformers)" in name:
        kind = getattr(transformers, OTHERS[name])
        return kind(kind.config_class(image_size=side, patch_size=16))
    if "(open_clip)" in name:
        return open_clip.create_model(OTHERS[name], force_image_size=side).visual
    return timm.create_model({**SIZES, **OTHERS}[name], img_size=side)


def loaded(name: str, side: int) -> Loaded:
    torch.manual_seed(0)
    transform = timm.data.create_transform((3, side, side), is_training=False)
    return Loaded(f"{name} at {side}", made(name, side).eval(), transform, None, (side, side))


def seconds_of_one(model: Loaded) -> float:
    """Seconds of an unpruned forward of one image on the CPU."""
    image = torch.randn(1, 3, *model.image_size)
    with torch.inference_mode():
        model.model(image)
        start = time.perf_counter()
        model.model(image)
    return time.perf_counter() - start


def groups(model: Loaded, given: argparse.Namespace) -> Iterator[tuple[list[int], list[str]]]:
    """Batch sizes and the recipes that they are timed with."""
    single = seconds_of_one(model) if given.device == "cpu" else 0.0
    batches = [int(batch) for batch in given.batches.split(",")]
    yield [batch for batch in batches if single * batch <= given.long], RECIPES
    yield [batch for batch in batches if given.long < single * batch <= given.most], RECIPES[1:2]


def table(results: list[Bench], left_out: list[str]) -> str:
    """The results as Markdown."""
    first = results[0]
    lines = [
        f"# Sizes and families, {first.rows[0].precision}, {first.rows[0].backend}, {first.device}, {first.threads} threads",
        "",
    ]
    lines += [f"torch {first.versions['torch']}; {first.date}; medians and quartiles of paired runs.", ""]
    lines += ["| model | recipe | MAC ratio | batch | ms unpruned | ms | speed-up | share of the MAC ratio |", "| --- " * 8 + "|"]
    for result in results:
        for row in result.rows[1:]:
            for before, timing in zip(result.unpruned(row).timings, row.timings, strict=True):
                gain = timing.speedup
                lines.append(
                    f"| {result.model} | {row.recipe} | {row.mac_ratio:.2f} | {timing.batch} | {1e3 * before.seconds:.0f} | "
                    f"{1e3 * timing.seconds:.0f} | {gain.median:.2f} ({gain.low:.2f}-{gain.high:.2f}) | {row.share(timing):.2f} |"
                )
    return "\n".join([*lines, "", *(f"Left out: {text}." for text in left_out)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SIZES), help="names, or 'others': " + ", ".join(OTHERS))
    parser.add_argument("--sides", default="224,384")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--long", type=float, default=5.0)
    parser.add_argument("--most", type=float, default=200.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: list[Bench] = []
    left_out: list[str] = []
    names = list(OTHERS) if given.models == "others" else given.models.split(",")
    for side, name in product(map(int, given.sides.split(",")), names):
        model = loaded(name, side)
        timed: list[int] = []
        for batches, recipes in groups(model, given):
            if batches:
                with tempfile.TemporaryDirectory() as folder:
                    results.append(measure(model, recipes, batches, folder, given))
            timed += batches
        left_out += [f"{model.name}, batch {batch}" for batch in given.batches.split(",") if int(batch) not in timed]
        write(given.out, results, left_out)
    print(table(results, left_out))


def measure(model: Loaded, recipes: list[str], batches: list[int], folder: str, given: argparse.Namespace) -> Bench:
    return bench(
        model, recipes, folder, batch_sizes=batches, seconds=given.seconds, device=given.device, precisions=(given.precision,),
        backends=(given.backend,), listen=lambda step: step.row and print(step.row, flush=True),
    )  # fmt: skip


def write(out: Path, results: list[Bench], left_out: list[str]) -> None:
    found = {"left_out": left_out, "results": [json.loads(done.to_json()) for done in results]}
    out.write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(results, left_out))


if __name__ == "__main__":
    main()
