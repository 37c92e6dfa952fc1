"""Realised speed-up of ViT-S/B/L at 224 and 384 pixels, batch 1 and 32, against the MAC ratio.

    python benchmarks/vit_sizes.py --out benchmarks/results/vit_sizes_cpu.json
    python benchmarks/vit_sizes.py --device cuda --precision bf16 --backend compile --out benchmarks/results/vit_sizes_cuda.json

timm architectures with random weights: which tokens go does not change the time. Every pruned forward is timed beside an unpruned one, as
`sparsight bench` does it; what would take longer than --most seconds for a single unpruned forward is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import timm
import torch

from sparsight.tools.bench import bench
from sparsight.tools.bench_result import Bench
from sparsight.tools.load import Loaded

SIZES = {"ViT-S": "vit_small_patch16_224", "ViT-B": "vit_base_patch16_224", "ViT-L": "vit_large_patch16_224"}
RECIPES = ["class_attention:keep=0.7,layers=3/6/9", "col_ln:keep=0.7,layers=3/6/9", "col_ln:keep=0.5,layers=3/6/9"]


def loaded(name: str, side: int) -> Loaded:
    torch.manual_seed(0)
    model = timm.create_model(SIZES[name], img_size=side).eval()
    transform = timm.data.create_transform((3, side, side), is_training=False)
    return Loaded(f"{name}/16 at {side}", model, transform, None, (side, side))


def affordable(model: Loaded, batches: list[int], most: float, device: str) -> list[int]:
    """Batch sizes whose unpruned forward takes at most so many seconds, judged by one image."""
    image = torch.randn(1, 3, *model.image_size)
    with torch.inference_mode():
        model.model(image)
        start = time.perf_counter()
        model.model(image)
    single = time.perf_counter() - start
    return [batch for batch in batches if device != "cpu" or single * batch <= most]


def table(results: list[Bench], left_out: list[str]) -> str:
    """The results as Markdown."""
    first = results[0]
    lines = [f"# ViT-S/B/L, {first.rows[0].precision}, {first.rows[0].backend}, {first.device}, {first.threads} threads", ""]
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
    parser.add_argument("--models", default=",".join(SIZES))
    parser.add_argument("--sides", default="224,384")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--most", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results, left_out = [], []
    for name in given.models.split(","):
        for side in map(int, given.sides.split(",")):
            model, wanted = loaded(name, side), [int(batch) for batch in given.batches.split(",")]
            batches = affordable(model, wanted, given.most, given.device)
            left_out += [f"{model.name}, batch {batch}" for batch in wanted if batch not in batches]
            if not batches:
                continue
            with tempfile.TemporaryDirectory() as folder:
                done = bench(
                    model, RECIPES, folder, batch_sizes=batches, seconds=given.seconds, device=given.device,
                    precisions=(given.precision,), backends=(given.backend,), listen=lambda step: step.row and print(step.row, flush=True),
                )  # fmt: skip
            results.append(done)
    given.out.write_text(
        json.dumps({"left_out": left_out, "results": [json.loads(done.to_json()) for done in results]}, indent=1) + "\n"
    )
    given.out.with_suffix(".md").write_text(table(results, left_out))
    print(table(results, left_out))


if __name__ == "__main__":
    main()
