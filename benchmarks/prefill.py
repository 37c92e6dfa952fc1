"""Prefill and decoding of a pruned vision-language model against its MAC ratio, at the shape of LLaVA-1.5-7B.

    python benchmarks/prefill.py --out benchmarks/results/prefill_cpu.json

Random weights, a language model 4096 wide cut to a few layers, prompts of 576 image and 64 text tokens, fp32. Every way runs once per
round, in changing order; ratios are within a round, median and quartiles. "short prompt" is the untouched model on a prompt of text that
is as long as the pruned one: what no way of pruning before the language model can beat.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import sparsight
from sparsight.load.shapes import check_memory, cut, random_model, shape_config, skeleton
from sparsight.load.vlms import random_prompts
from sparsight.prune import family_of, prune
from sparsight.speed.stages import Macs, Times, count_macs, time_stages
from sparsight.speed.timing import Spread, spread

UNPRUNED, SHORT = "unpruned", "short prompt"
ALONE = ["vispruner:tokens=64", "divprune:tokens=64", "vispruner:tokens=192", "fastv:layer=1,keep=0.11112"]
BATCH = ["vispruner:tokens=64"]
TEXT = 64


@dataclass
class Way:
    """One way to run: the model under a recipe, or on a short prompt; its runs, and what they count."""

    name: str
    inputs: dict[str, Any] = field(repr=False)
    recipe: str | None = None
    runs: list[Times] = field(default_factory=list)
    macs: Macs | None = None
    cache: list[int] = field(default_factory=list)

    def run(self, model: Any, tokens: int) -> None:
        handle = prune(model, self.recipe) if self.recipe else None
        family = family_of(model)
        if self.macs is None:
            self.macs, self.cache, _ = count_macs(model, family, handle, self.inputs)
        else:
            self.runs.append(time_stages(model, family, handle, self.inputs, tokens))
        if handle is not None:
            handle.remove()


def ways(config: Any, recipes: list[str], batch: int, device: str) -> list[Way]:
    """The unpruned model, the recipes, and short prompts for the numbers of tokens that they leave."""
    inputs = {name: value.to(device) for name, value in random_prompts(config, [], batch, 0).items()}
    words = inputs["input_ids"].clamp(max=31999)
    lengths = sorted({TEXT + int(recipe.rpartition("tokens=")[2]) for recipe in recipes if "tokens=" in recipe})
    short = [
        Way(f"{SHORT}, {length} tokens", {"input_ids": words[:, :length], "attention_mask": inputs["attention_mask"][:, :length]})
        for length in lengths
    ]
    return [Way(UNPRUNED, inputs), *(Way(recipe, inputs, recipe) for recipe in recipes), *short]


def measure(model: Any, table: list[Way], rounds: int, tokens: int) -> None:
    """Count once, then time in rounds; one more round to warm up is left out."""
    for turn in range(rounds + 2):
        for way in table if turn % 2 else table[::-1]:
            way.run(model, tokens)
            if turn == 1:
                way.runs.clear()
        print(f"round {turn - 1} of {rounds}" if turn > 1 else ("counted", "warm")[turn], flush=True)


def rows(table: list[Way]) -> list[dict[str, Any]]:
    """What is reported of every way, against the unpruned model of the same rounds."""
    first = table[0]
    found = []
    for way in table:
        assert way.macs is not None
        assert first.macs is not None
        prefill = ratios(first, way, "reading")
        ratio = first.macs.reading / way.macs.reading
        middle = {
            name: spread(getattr(t, name) for t in way.runs).median for name in ("vision", "selection", "prefill", "per_token")
        }
        found.append(
            {"way": way.name, "gmacs": way.macs.reading / 1e9, "cache": way.cache, "mac_ratio": ratio, "prefill_speedup": asdict(prefill),
             "share": prefill.median / ratio, "decoding_speedup": asdict(ratios(first, way, "per_token")), "seconds": middle}
        )  # fmt: skip
    return found


def ratios(first: Way, way: Way, name: str) -> Spread:
    return spread(getattr(a, name) / getattr(b, name) for a, b in zip(first.runs, way.runs, strict=True))


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"# Prefill and decoding at the shape of a 7B language model cut to {result['layers']} layers", ""]
    lines += [
        f"{result['machine']}, {result['threads']} threads, fp32, torch {result['torch']}, transformers {result['transformers']}; 576 image and "
        f"{TEXT} text tokens, {result['new_tokens']} new ones; medians (quartiles) of ratios within rounds. Prefill includes the selection. "
        "Aims: share at least 0.9, decoding at least 1.",
    ]
    for part in result["batches"]:
        lines += ["", f"## Batch {part['batch']}, {part['rounds']} rounds", ""]
        lines += ["| way | GMACs | MAC ratio | prefill speed-up | share | decoding | selection ms | prefill ms | ms per token |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        for row in part["rows"]:
            speed, decoding = (
                f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in (row["prefill_speedup"], row["decoding_speedup"])
            )
            ms = " | ".join(f"{1e3 * row['seconds'][name]:.0f}" for name in ("selection", "prefill", "per_token"))
            lines.append(
                f"| `{row['way']}` | {row['gmacs']:.1f} | {row['mac_ratio']:.2f} | {speed} | {row['share']:.2f} | {decoding} | {ms} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="size of the second measurement, 1 for none")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="name of the processor in the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import transformers

    config = shape_config("llava-7b-shape", vision_layers=2)
    cut(config, args.layers)
    check_memory(skeleton(config), config, args.device, torch.float32, args.batch, 576 + TEXT + args.new_tokens)
    model = random_model(config, args.device, torch.float32)
    batches = []
    for batch, recipes, rounds in ((1, ALONE, args.rounds), (args.batch, BATCH, max(2, args.rounds - 2)))[: 1 + (args.batch > 1)]:
        table = ways(config, recipes, batch, args.device)
        measure(model, table, rounds, args.new_tokens)
        batches.append({"batch": batch, "rounds": rounds, "rows": rows(table)})
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.machine
    result = {"machine": name, "threads": args.threads, "layers": args.layers, "new_tokens": args.new_tokens, "seed": 0,
              "torch": torch.__version__, "transformers": transformers.__version__, "sparsight": sparsight.__version__, "batches": batches}  # fmt: skip
    text = table_of(result)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
