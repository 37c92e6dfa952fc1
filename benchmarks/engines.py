"""Every engine, unpruned and pruned, all in turn: time, speed-up in the same engine, share of the MAC ratio.

    python benchmarks/engines.py --out benchmarks/engines.json [--beside OTHER/src]

The embedded demo model (ViT-S/14 at 224 pixels, 257 tokens), float32. In every round each engine runs the unpruned model and every recipe,
in random order, each after a moment of rest and one forward that is not timed; speed-ups are within a round, median and quartiles.
--beside: the `src` folder of another version of Sparsight, whose `prune` in PyTorch runs in the same rounds, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import sparsight
from sparsight.demo import ARCHITECTURE, IMAGE_SIZE, demo_weights

ENGINES = ("eager", "compile", "onnxruntime", "openvino")
RECIPES = (
    "col_ln:keep=0.7,layers=3/6/9",
    "evit:keep=0.7,layers=3/6/9",
    "tome:keep=0.7,layers=3/6/9",
    "class_attention:keep=0.5,layers=0/3/6",
    "col_ln:keep=0.5,layers=0/3/6",
)
UNPRUNED, OTHER = "unpruned", "other version"
REST = 0.03
"""Seconds before a forward: threads of the engine before it spin for a while when it is done."""

Timer = Callable[[int], float]
"""Batch size -> seconds of one forward."""


@dataclass(frozen=True)
class Setting:
    """Images per forward, threads, rounds, and forwards of each way in a round (their median counts)."""

    batch: int
    threads: int
    rounds: int
    forwards: int


SETTINGS = (Setting(1, 1, 15, 3), Setting(1, 2, 25, 3), Setting(16, 2, 8, 1), Setting(32, 2, 6, 1))
SMOKE = (Setting(2, 1, 2, 1),)


def demo() -> nn.Module:
    state, classes = demo_weights()
    model = timm.create_model(ARCHITECTURE, img_size=IMAGE_SIZE, num_classes=len(classes), dynamic_img_size=True)
    model.load_state_dict(state)
    return model.eval()


def tiny() -> nn.Module:
    """For trying out: seconds instead of minutes."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 10, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"demo": demo, "tiny": tiny}


def images_of(model: nn.Module, batch: int) -> torch.Tensor:
    side = model.patch_embed.img_size  # type: ignore[union-attr]
    return torch.randn(batch, 3, *side, generator=torch.Generator().manual_seed(0))  # type: ignore[misc]


def way(name: str, recipe: str, engine: str, batches: list[int]) -> Timer:
    """The model under a recipe in an engine of this version."""
    model = MODELS[name]()
    if recipe != UNPRUNED:
        sparsight.prune(model, recipe)
    batch = {size: images_of(model, size) for size in batches}
    run: Any = model
    if engine != "eager":
        known = {"batch_sizes": batches} if engine == "openvino" else {}
        run = sparsight.compile(model, batch[batches[0]], "inductor" if engine == "compile" else engine, **known)

    def timed(size: int) -> float:
        with torch.inference_mode(engine == "eager"):
            start = time.perf_counter()
            run(batch[size])
            return time.perf_counter() - start

    return timed


class Beside:
    """Another version of Sparsight in a process that answers on request how long a forward took."""

    def __init__(self, source: Path, model: str, recipes: list[str], threads: int) -> None:
        command = [sys.executable, __file__, "--answer", model, str(threads), *recipes]
        places = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=places)

    def way(self, recipe: str) -> Timer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        stdin, stdout = self.process.stdin, self.process.stdout

        def timed(size: int) -> float:
            stdin.write(json.dumps([recipe, size]) + "\n")
            stdin.flush()
            return float(stdout.readline())

        return timed

    def close(self) -> None:
        self.process.communicate()


def answer(model: str, threads: int, recipes: list[str]) -> None:
    """The process of `Beside`."""
    torch.set_num_threads(threads)
    found = {}
    for recipe in recipes:
        found[recipe] = MODELS[model]()
        if recipe != UNPRUNED:
            sparsight.prune(found[recipe], recipe)
    for line in sys.stdin:
        recipe, size = json.loads(line)
        images = images_of(found[recipe], size)
        with torch.inference_mode():
            start = time.perf_counter()
            found[recipe](images)
            print(time.perf_counter() - start, flush=True)


def rounds(ways: dict[tuple[str, str], Timer], setting: Setting) -> dict[tuple[str, str], list[float]]:
    """Seconds of every way in every round."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    order = list(ways)
    for key in order:
        for _ in range(WARM):
            ways[key](setting.batch)
    for turn in range(setting.rounds):
        random.Random(turn).shuffle(order)
        for key in order:
            time.sleep(REST)
            if setting.forwards > 1:
                ways[key](setting.batch)
            runs = sorted(ways[key](setting.batch) for _ in range(setting.forwards))
            times[key].append(runs[len(runs) // 2])
        print(f"batch {setting.batch}, {setting.threads} threads, round {turn + 1} of {setting.rounds}", flush=True)
    return times


WARM = 12
"""Forwards of each way before the first round; versions up to f51a568 change how they run until the tenth."""


def measure(
    name: str, settings: tuple[Setting, ...], engines: list[str], recipes: list[str], beside: Path | None
) -> Iterator[list[dict[str, Any]]]:
    """All ways, setting by setting, as rows."""
    recipes = [UNPRUNED, *recipes]
    ratios = mac_ratios(name, recipes)
    for threads in sorted({setting.threads for setting in settings}):
        torch.set_num_threads(threads)
        here = [setting for setting in settings if setting.threads == threads]
        batches = sorted({setting.batch for setting in here})
        ways = {(engine, recipe): way(name, recipe, engine, batches) for engine in engines for recipe in recipes}
        other = None if beside is None else Beside(beside, name, recipes, threads)
        if other is not None:
            ways |= {(OTHER, recipe): other.way(recipe) for recipe in recipes}
        print(f"{len(ways)} ways are ready, {threads} threads", flush=True)
        for setting in here:
            times = rounds(ways, setting)
            yield [
                {**asdict(setting), "engine": engine, "recipe": recipe, "mac_ratio": ratios[recipe], "seconds": found}
                for (engine, recipe), found in times.items()
            ]
        if other is not None:
            other.close()
        torch.compiler.reset()


def mac_ratios(name: str, recipes: list[str]) -> dict[str, float]:
    """Multiply-accumulates of the unpruned model over those of each recipe."""
    model = MODELS[name]()
    side = tuple(model.patch_embed.img_size)  # type: ignore[union-attr,arg-type]
    whole = sparsight.macs(model, None, side)
    return {recipe: whole / sparsight.macs(model, None if recipe == UNPRUNED else recipe, side) for recipe in recipes}


def middle(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, median, high = (
        torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    )
    return median, low, high


def page(result: dict[str, Any]) -> str:
    """The result as Markdown: one table per batch size and number of threads, one column per engine."""
    rows = result["rows"]
    known = {(row["batch"], row["threads"], row["engine"], row["recipe"]): row for row in rows}
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    lines = [
        "# Engines",
        "",
        f"{result['machine']}, {', '.join(f'{name} {version}' for name, version in result['versions'].items())}, {result['date']}. {result['note']}".strip(),
        f"The {result['model']} model, float32. All ways ran in turn, in random order. Each cell: milliseconds, **speed-up beside the unpruned model in",
        "the same engine and the same rounds** (quartiles), and its share of the MAC ratio. Made by `python benchmarks/engines.py`.",
    ]
    if OTHER in engines:
        lines += ["", f"*{OTHER}*: {result['beside']}"]
    for batch, threads in dict.fromkeys((row["batch"], row["threads"]) for row in rows):
        first = known[batch, threads, engines[0], UNPRUNED]
        lines += ["", f"## Batch {batch}, {threads} thread{'s' * (threads > 1)}, {first['rounds']} rounds", ""]
        lines += ["| recipe | MAC ratio | " + " | ".join(engines) + " |", "| --- " * (2 + len(engines)) + "|"]
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            cells = [cell(known, batch, threads, engine, recipe) for engine in engines]
            ratio = known[batch, threads, engines[0], recipe]["mac_ratio"]
            lines.append(f"| `{recipe}` | {ratio:.2f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *aims(rows, known), ""])


def gain(known: dict[Any, Any], batch: int, threads: int, engine: str, recipe: str) -> tuple[float, float, float]:
    """Speed-up beside the unpruned model in the same engine, median and quartiles over the rounds."""
    before, after = (known[batch, threads, engine, name]["seconds"] for name in (UNPRUNED, recipe))
    return middle([a / b for a, b in zip(before, after, strict=True)])


def cell(known: dict[Any, Any], batch: int, threads: int, engine: str, recipe: str) -> str:
    row = known[batch, threads, engine, recipe]
    ms = f"{1e3 * middle(row['seconds'])[0]:.1f}"
    if recipe == UNPRUNED:
        _, low, high = middle(row["seconds"])
        return f"{ms} ({1e3 * low:.1f}-{1e3 * high:.1f})"
    median, low, high = gain(known, batch, threads, engine, recipe)
    return f"{ms}, **{median:.2f}** ({low:.2f}-{high:.2f}), {median / row['mac_ratio']:.2f}"


def aims(rows: list[dict[str, Any]], known: dict[Any, Any]) -> list[str]:
    """What is aimed at, and what was reached: worst and best share over the recipes."""
    wanted = [("keep=0.7", 16, 2, 0.95), ("keep=0.7", 32, 2, 0.95), ("keep=0.5", 16, 2, 0.85), ("keep=0.5", 32, 2, 0.85),
              ("keep=0.7", 1, 1, 0.90), ("keep=0.7", 1, 2, 0.90), ("keep=0.5", 1, 1, 0.75)]  # fmt: skip
    lines: list[str] = []
    for budget, batch, threads, aim in wanted:
        recipes = [recipe for recipe in dict.fromkeys(row["recipe"] for row in rows) if budget in recipe]
        if not recipes or any((batch, threads, engine, UNPRUNED) not in known for engine in ("openvino", "onnxruntime")):
            continue
        found = []
        for engine in ("openvino", "onnxruntime"):
            shares = [gain(known, batch, threads, engine, r)[0] / known[batch, threads, engine, r]["mac_ratio"] for r in recipes]
            found.append(f"{min(shares):.2f} to {max(shares):.2f}")
        lines.append(f"| {budget}, batch {batch}, {threads} thread{'s' * (threads > 1)} | {aim:.2f} | {' | '.join(found)} |")
    if lines:
        lines = ["## Aims", "", "| share of the MAC ratio | aim | openvino | onnxruntime |", "| --- | --- | --- | --- |", *lines]
    if any(row["engine"] == OTHER for row in rows):
        lines += ["", *against_other(rows, known)]
    return lines


def against_other(rows: list[dict[str, Any]], known: dict[Any, Any]) -> list[str]:
    """The fastest engine beside the other version, recipe by recipe."""
    lines = [f"Milliseconds of the fastest engine beside the {OTHER} (aim: not more):", "", "| batch, threads | recipe | fastest | ms | of the other version |", "| --- " * 5 + "|"]  # fmt: skip
    for batch, threads in dict.fromkeys((row["batch"], row["threads"]) for row in rows):
        for recipe in dict.fromkeys(row["recipe"] for row in rows if row["recipe"] != UNPRUNED):
            times = {
                row["engine"]: row["seconds"]
                for row in rows
                if (row["batch"], row["threads"], row["recipe"]) == (batch, threads, recipe)
            }
            best = min((name for name in times if name != OTHER), key=lambda name: middle(times[name])[0])
            ratio, low, high = middle([a / b for a, b in zip(times[best], times[OTHER], strict=True)])
            lines.append(
                f"| {batch}, {threads} | `{recipe}` | {best} | {1e3 * middle(times[best])[0]:.1f} | {ratio:.2f} ({low:.2f}-{high:.2f}) |"
            )
    return lines


def main() -> None:
    if sys.argv[1:2] == ["--answer"]:
        return answer(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--beside", type=Path, help="src folder of another version")
    parser.add_argument("--beside-note", default="", help="what that version is")
    parser.add_argument("--rounds", type=int, help="in every setting; by default 6 to 25")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one setting: does it run")
    parser.add_argument("--note", default="", help="a sentence on the state of the machine")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="name of the processor")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    name = "tiny" if given.smoke else "demo"
    settings = SMOKE if given.smoke else SETTINGS
    if given.rounds:
        settings = tuple(replace(setting, rounds=given.rounds) for setting in settings)
    from importlib.metadata import version

    from sparsight.runs.store import write_text  # not at the top: this file also runs with another version's packages

    versions = {package: version(package) for package in ("torch", "onnxruntime", "openvino")}
    result = {"model": name, "machine": given.machine, "versions": versions, "date": time.strftime("%Y-%m-%d"), "note": given.note,
              "beside": given.beside_note, "rows": []}  # fmt: skip
    for rows in measure(name, settings, given.engines.split(","), list(given.recipes), given.beside):  # what is finished stays
        result["rows"] += rows
        write_text(given.out, json.dumps(result, indent=1) + "\n")
        write_text(given.out.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
