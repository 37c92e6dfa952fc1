"""What has to be brought before an entry can run, and which function runs it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from sparsight.load.checkpoint import in_cache

from .order import Order, Yield
from .published import index
from .reproduce_vision import classify, complexity, draw, inspect
from .reproduce_vlm import HARNESS, answer

Runner = Callable[[Order, Yield], None]

RUNNERS: dict[str, Runner] = {
    "compare": classify,
    "evaluate": classify,
    "train": classify,
    "show": draw,
    "analyse": inspect,
    "rank": complexity,
    "evaluate-vlm": answer,
}
"""Commands whose entries run here; those of the others are given as a line for the shell."""


CLIP_WEIGHTS = "timm/vit_base_patch16_clip_224.openai"
"""Where open_clip has OpenAI's ViT-B/16 from."""


def runner(command: str) -> Runner | None:
    """What runs the entries of a command; None where this verb runs none of them."""
    return RUNNERS.get(command)


def wanting(order: Order) -> list[str]:
    """What is not at hand, each with where it comes from and the option that brings it."""
    found = order.entry
    if found.command == "none":
        return [f"nothing to run: {found.shows or found.title}"]
    lacks = [f"method {name!r} is not in this version" for name in dict.fromkeys(row.method for row in order.rows if row.pending)]
    for key, place in order.data.items():
        if not place:
            data = index().data[key]
            harness = f", or --data {HARNESS} for the harness's own" if found.command == "evaluate-vlm" else ""
            what = "FILE.jsonl" if found.command == "evaluate-vlm" else "DIR"
            lacks.append(f"data {key}: {data.title}, from {data.get}; give --data {option(key, what)}{harness}")
    for key, name in order.models.items():
        if not name:
            lacks += weights(key, found.command == "train")
    if not order.data and runner(found.command) is not None:
        lacks.append("the paper does not say on what this was made; it cannot be run")
    if runner(found.command) is None:
        lacks += [f"this is not run from here; the command is: {line}" for line in shell(order)]
    return lacks


def weights(key: str, tuned: bool) -> list[str]:
    """What is missing of a model's weights; nothing if they lie in the cache of the Hugging Face Hub."""
    model = index().models[key]
    own = f"--model {option(key, 'ARCH@FILE.safetensors' if model.library == 'timm' else 'FOLDER')}"
    if tuned:
        return [f"weights {key}: {model.name}, fine-tuned with each recipe (not published); give your own with {own}"]
    repository = {"timm": f"timm/{model.name}", "open_clip": CLIP_WEIGHTS}.get(model.library, model.name)
    if in_cache(repository):
        return []
    return [
        f"weights {key}: {repository} from the Hugging Face Hub, not on this machine; with network they come by themselves, else give {own}"
    ]


def option(key: str, value: str) -> str:
    """KEY=VALUE as it is written in a shell."""
    return f"{key}={value}" if re.fullmatch(r"[\w.-]+", key) else f"'{key}={value}'"


def shell(order: Order) -> list[str]:
    """The command that measures the entry, model by model, for verbs that take a model and recipes."""
    lines = []
    for key, name in order.models.items():
        recipes = dict.fromkeys(row.recipe for row in order.rows if row.model == key and row.method and not row.pending)
        words = ["sparsight", order.entry.command, "--model", name or index().models[key].name]
        if order.entry.command == "generate":
            where = f"sparsight.prune(model, recipe) and the model's own generate, with {' '.join(recipes) or 'each recipe'}"
            return [f"in Python: {where}; see docs/how-to/lvlm.md"]
        lines.append(shlex.join([*words, *(part for recipe in recipes for part in ("--recipe", recipe))]))
    return lines
