"""Do models with quantised weights keep the tokens of the float32 model, on real images?

    python benchmarks/quantised.py --out benchmarks/results/quantised_cpu.json

The embedded demo model on the embedded images, and the demo vision-language model on the first of its sample pictures, one question each. Weights
of linear layers are int8 or int4 by torchao (`pip install torchao`) or bitsandbytes, whichever is installed. For every recipe: share of images whose kept sets are the same
as in float32, mean overlap of the sets (intersection over union), share of the same class, or of the same answer.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import sparsight
from sparsight.data.images import open_folder
from sparsight.load import demo_vlm
from sparsight.load.models import demo_images
from sparsight.speed.export import read_images

VISION = ("col_ln:keep=0.7,layers=3/6/9", "evit:keep=0.7,layers=3/6/9")
LANGUAGE = ("fastervlm:tokens=64", "divprune:tokens=64")
QUESTION = "what is in the picture ?"
PICTURES = 12
Outcome = tuple[list[set[int]], list[str]]
"""Kept tokens of every image, and what was said of it."""


def torchao(config: Callable[[Any], Any]) -> Callable[[nn.Module], nn.Module]:
    def quantise(model: nn.Module) -> nn.Module:
        import torchao.quantization as ao

        ao.quantize_(model, config(ao))
        return model

    return quantise


def bitsandbytes(kind: str) -> Callable[[nn.Module], nn.Module]:
    """Every linear layer but the head."""

    def quantise(model: nn.Module) -> nn.Module:
        import bitsandbytes as bnb

        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and not name.endswith("head"):
                made = getattr(bnb.nn, kind)(module.in_features, module.out_features, module.bias is not None)
                state = dict(module.state_dict())
                made.load_state_dict(state)
                owner, _, last = name.rpartition(".")
                setattr(model.get_submodule(owner), last, made.to("cpu"))
        return model

    return quantise


SCHEMES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torchao int8": torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "torchao int4, groups of 32": torchao(lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))),
    "bitsandbytes nf4": bitsandbytes("LinearNF4"),
}


def installed(scheme: str) -> bool:
    return importlib.util.find_spec(scheme.split()[0]) is not None


@torch.no_grad()
def see(model: nn.Module, recipe: str, loaded: Any) -> Outcome:
    """The demo model on the embedded images."""
    images = read_images(loaded, open_folder(demo_images()).paths)
    with sparsight.prune(model, recipe) as handle:
        said = [str(int(best)) for best in model(images).argmax(dim=1)]
        return [set(row.tolist()) for row in handle.sources()[-1].keep], said


@torch.no_grad()
def ask(model: nn.Module, recipe: str, loaded: Any) -> Outcome:
    """The demo vision-language model on pictures of the package."""
    kept, said, processor = [], [], loaded.processor
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    words = processor.apply_chat_template(talk, add_generation_prompt=True)
    with sparsight.prune(model, recipe) as handle:
        for file in sorted(demo_vlm.pictures().glob("*.jpg"))[:PICTURES]:
            given = processor(images=[Image.open(file).convert("RGB")], text=[words], return_tensors="pt")
            out = model.generate(**given, max_new_tokens=8, do_sample=False)
            said.append(processor.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
            kept.append(set(handle.plans[0].keep[0].tolist()))
    return kept, said


def against(wanted: Outcome, got: Outcome) -> dict[str, float]:
    pairs = list(zip(wanted[0], got[0], strict=True))
    return {
        "images": len(pairs),
        "same_kept": sum(a == b for a, b in pairs) / len(pairs),
        "overlap": sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs),
        "same_said": sum(a == b for a, b in zip(wanted[1], got[1], strict=True)) / len(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = []
    for loaded, recipes, outcome in (
        (sparsight.load("demo"), VISION, see),
        (sparsight.load_vlm(demo_vlm.NAME), LANGUAGE, ask),
    ):
        wanted = {recipe: outcome(loaded.model, recipe, loaded) for recipe in recipes}
        for scheme, quantise in SCHEMES.items():
            if not installed(scheme):
                continue
            model = quantise(copy.deepcopy(loaded.model))
            for recipe in recipes:
                row = against(wanted[recipe], outcome(model, recipe, loaded))
                rows.append({"model": loaded.name, "recipe": recipe, "weights": scheme, **row})
                print(rows[-1], flush=True)
    facts = {"machine": platform.machine(), "torch": torch.__version__}
    given.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    lines = ["| model | recipe | weights | images | same set % | overlap % | same class or answer % |", "| --- " * 7 + "|"]
    lines += [
        f"| {row['model']} | `{row['recipe']}` | {row['weights']} | {row['images']} | {100 * row['same_kept']:.0f} | {100 * row['overlap']:.1f} | {100 * row['same_said']:.0f} |"
        for row in rows
    ]
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
