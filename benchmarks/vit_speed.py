"""Realised speed-up of pruned ViTs against their MAC ratio, and what each score costs beside class attention.

    python benchmarks/vit_speed.py --out benchmarks/results/vit_speed_cpu.json

The embedded demo model (ViT-S/14, 257 tokens), fp32. Every number comes from paired runs: both ways alternate on the same batch, and
the ratio within each pair gives median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

import sparsight
from sparsight.tools.load import load_model
from sparsight.tools.macs import macs
from sparsight.tools.timing import Pairs, Way, pair

REALISED = ["class_attention:keep=0.7", "class_attention:keep=0.5", "class_attention:keep=0.7,layers=0/3/6", "evit:keep=0.7",
            "col_ln:keep=0.7", "tome:keep=0.7,layers=3/6/9", "similarity:keep=0.7"]  # fmt: skip
SCORES = ["col_ln", "col_ln_rescue", "shannon", "renyi", "similarity", "random", "evit", "tome"]


def pruned(model: nn.Module, recipe: str) -> Way:
    return lambda: sparsight.prune(model, recipe)


def measure(model: nn.Module, images: Tensor, first: Way, recipe: str, seconds: float) -> Pairs:
    with torch.inference_mode():
        return pair(lambda: model(images), first, pruned(model, recipe), images.device, seconds)


def run(batch: int, seconds: float, device: torch.device) -> dict[str, list[dict[str, object]]]:
    model = load_model("demo").model.to(device)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    dense = macs(model)
    realised, scores = [], []
    for recipe in REALISED:
        ratio = dense / macs(model, recipe)
        gain = measure(model, images, nullcontext, recipe, seconds).speedup
        realised.append({"recipe": recipe, "mac_ratio": ratio, "speedup": gain.median, "quartiles": [gain.low, gain.high],
                         "share": gain.median / ratio, "pairs": gain.runs})  # fmt: skip
        print(f"batch {batch:3d}  {recipe:40s} MAC ratio {ratio:.3f}  speed-up {gain}  share {gain.median / ratio:.3f}", flush=True)
    for name in SCORES:
        recipe = f"{name}:keep=0.7,layers=3/6/9"
        beside = measure(model, images, pruned(model, "class_attention:keep=0.7"), recipe, seconds).speedup
        scores.append({"recipe": recipe, "throughput_of_class_attention": beside.median,
                       "quartiles": [beside.low, beside.high], "pairs": beside.runs})  # fmt: skip
        print(f"batch {batch:3d}  {recipe:40s} throughput relative to class attention {beside}", flush=True)
    return {"realised": realised, "scores": scores}


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['model']}, {result['precision']}, {result['machine']}, {result['threads']} threads, torch {result['torch']}",
        "",
    ]
    for batch, part in result["batches"].items():  # type: ignore[attr-defined]
        lines += [
            f"Batch {batch}",
            "",
            "| recipe | MAC ratio | speed-up (quartiles) | share of the MAC ratio |",
            "| --- | --- | --- | --- |",
        ]
        for row in part["realised"]:
            low, high = row["quartiles"]
            lines.append(
                f"| `{row['recipe']}` | {row['mac_ratio']:.3f} | {row['speedup']:.3f} ({low:.3f}-{high:.3f}) | {row['share']:.3f} |"
            )
        lines += ["", "| keep 0.7 at 3/6/9 | throughput relative to class attention (quartiles) |", "| --- | --- |"]
        for row in part["scores"]:
            low, high = row["quartiles"]
            lines.append(f"| `{row['recipe'].split(':')[0]}` | {row['throughput_of_class_attention']:.3f} ({low:.3f}-{high:.3f}) |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vit_speed_cpu.json"))
    parser.add_argument("--batches", default="32,1")
    parser.add_argument("--seconds", type=float, default=30.0, help="time per comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="name of the processor in the result")
    options = parser.parse_args()
    device = torch.device(options.device)
    result: dict[str, object] = {
        "model": "demo ViT-S/14 at 224", "precision": "fp32", "machine": options.machine, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "sparsight": sparsight.__version__,
        "batches": {batch: run(int(batch), options.seconds, device) for batch in options.batches.split(",")},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
