"""Realised speed-up of pruned ViTs against their MAC ratio, and what each score costs beside class attention.

    python benchmarks/vit_speed.py --out benchmarks/results/vit_speed_cpu.json

The embedded demo model (ViT-S/14, 257 tokens), fp32. Every number comes from paired runs: both ways alternate on the same batch, warm
and with the same weights, and the ratio within each pair gives median and quartiles. Beside class attention runs a plain loop that drops
as many tokens without choosing, in the framework's own blocks.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsight
from sparsight.load.models import load, twin
from sparsight.speed.macs import macs
from sparsight.speed.timing import Forward, Pairs, Spread, race

LIMITS = ["class_attention:keep=0.7", "class_attention:keep=0.5", "class_attention:keep=0.7,layers=0/3/6",
          "class_attention:keep=0.5,layers=0/3/6"]  # fmt: skip
REALISED = [*LIMITS, "evit:keep=0.7", "col_ln:keep=0.7", "col_ln:keep=0.5,layers=0/3/6", "tome:keep=0.7,layers=3/6/9",
            "similarity:keep=0.7"]  # fmt: skip
COPIES = 4
"""Of every score beside class attention: where a copy's weights lie in memory is worth a point or two."""
SCORES = ["col_ln", "col_ln_rescue", "shannon", "renyi", "similarity", "random", "evit", "tome"]


def pruned(model: nn.Module, recipe: str) -> nn.Module:
    found = twin(model)
    sparsight.prune(found, recipe)
    return found


def sliced(model: nn.Module, recipe: str) -> Forward:
    """The model as a plain loop that drops the last tokens between attention and MLP, as many as the recipe: nothing is chosen."""
    m: Any = model
    with sparsight.prune(m, recipe) as handle, torch.inference_mode():
        m(torch.zeros(1, 3, 224, 224, device=next(m.parameters()).device))
        left = dict(zip(handle.layers, handle.counts, strict=True))

    def forward(images: Tensor) -> Tensor:
        x = m.norm_pre(m._pos_embed(m.patch_embed(images)))
        for index, block in enumerate(m.blocks):
            if index in left:
                x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
                x = x[:, : m.num_prefix_tokens + left[index]].contiguous()
                x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
            else:
                x = block(x)
        out: Tensor = m.forward_head(m.norm(x))
        return out

    return forward


def measure(first: Forward, second: Forward, images: Tensor, seconds: float) -> Pairs:
    """Both, each warm and in turn."""
    with torch.inference_mode():
        return race(first, second, images, seconds)


def beside(model: nn.Module, first: str, second: str, images: Tensor, seconds: float) -> Spread:
    """How many times faster the second recipe is, over several copies of the model."""
    runs = [measure(pruned(model, first), pruned(model, second), images, seconds / COPIES) for _ in range(COPIES)]
    return Pairs([t for run in runs for t in run.first], [t for run in runs for t in run.second]).speedup


def row(recipe: str, ratio: float, gain: Spread) -> dict[str, object]:
    return {"recipe": recipe, "mac_ratio": ratio, "speedup": gain.median, "quartiles": [gain.low, gain.high],
            "share": gain.median / ratio, "pairs": gain.runs}  # fmt: skip


def run(batch: int, seconds: float, device: torch.device) -> dict[str, list[dict[str, object]]]:
    model = load("demo").model.to(device)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    dense = macs(model)
    found: dict[str, list[dict[str, object]]] = {"limits": [], "realised": [], "scores": []}
    for recipe in REALISED:
        ratio = dense / macs(model, recipe)
        gain = measure(model, pruned(model, recipe), images, seconds).speedup
        found["realised"].append(row(recipe, ratio, gain))
        print(f"batch {batch:3d}  {recipe:40s} MAC ratio {ratio:.3f}  speed-up {gain}  share {gain.median / ratio:.3f}", flush=True)
        if recipe in LIMITS:
            gain = measure(sliced(model, recipe), pruned(model, recipe), images, seconds).speedup
            found["limits"].append({"recipe": recipe, "speed_of_slicing": gain.median, "quartiles": [gain.low, gain.high]})
            print(f"batch {batch:3d}  {recipe:40s} beside a loop that only slices {gain}", flush=True)
    for name in SCORES:
        recipe = f"{name}:keep=0.7,layers=3/6/9"
        gain = beside(model, "class_attention:keep=0.7", recipe, images, seconds)
        found["scores"].append({"recipe": recipe, "throughput_of_class_attention": gain.median,
                                "quartiles": [gain.low, gain.high], "pairs": gain.runs})  # fmt: skip
        print(f"batch {batch:3d}  {recipe:40s} throughput relative to class attention {gain}", flush=True)
    return found


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
        lines += ["", "| recipe | speed beside a loop that only slices (quartiles) |", "| --- | --- |"]
        for row in part["limits"]:
            low, high = row["quartiles"]
            lines.append(f"| `{row['recipe']}` | {row['speed_of_slicing']:.3f} ({low:.3f}-{high:.3f}) |")
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
