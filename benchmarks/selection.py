"""Time to select and merge image tokens at the size of LLaVA-1.5, against one cosine Gram matrix of the same tokens.

    python benchmarks/selection.py --out benchmarks/results/selection_cpu.json

576 tokens of width 4096, q and k of 16 heads of 64, fp32. Every way runs once per round, the Gram matrix first, and the ratio within
each round gives median and quartiles. Effective rank is set against Gram matrix plus eigenvalues, in float32 and in float64.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sparsight
from sparsight.evaluation import metrics
from sparsight.speed.timing import clock

RECIPES = ["fastervlm:tokens=64", "visionzip:tokens=64,contextual=10", "visionzip:tokens=192,contextual=30", "prumerge", "prumerge:tokens=72",
           "prumerge_plus", "divprune:tokens=64", "fps:tokens=64", "vispruner:tokens=64,ratio=0.5", "vispruner:tokens=64,rescue=0.8",
           "bat:tokens=64", "agile:tokens=64,by=entropy", "agile:tokens=64,by=erank", "mix:tokens=64,by=entropy", "mix:tokens=64,by=erank"]  # fmt: skip
LIMITS = {"divprune:tokens=64": 1.5, "vispruner:tokens=64,ratio=0.5": 2, "visionzip:tokens=64,contextual=10": 1, "prumerge": 1,
          "prumerge:tokens=72": 1}  # fmt: skip
GRAM, BOTH, DOUBLE, RANK = "cosine Gram matrix", "Gram + eigenvalues, float32", "Gram + eigenvalues, float64", "effective rank"


def cosine_gram(x: Tensor) -> Tensor:
    x = torch.nn.functional.normalize(x, dim=-1)
    return x @ x.transpose(-2, -1)


def ways(n: int, width: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(device)

    x, token, q, k = random(1, n, width), random(1, 1, width), random(1, 16, n + 1, 64), random(1, 16, n + 1, 64)
    attention = (2 * random(1, 16, n)).softmax(-1)

    def reducing(recipe: str) -> Callable[[], object]:
        made = sparsight.parse(recipe)
        return lambda: sparsight.reduce(made, x=x, class_attn=attention, class_token=token, q=q, k=k)

    table: dict[str, Callable[[], object]] = {recipe: reducing(recipe) for recipe in RECIPES}
    table[RANK] = lambda: metrics.effective_rank(x)
    table[BOTH] = lambda: torch.linalg.eigvalsh(x @ x.transpose(-2, -1))
    table[DOUBLE] = lambda: torch.linalg.eigvalsh(x.double() @ x.double().transpose(-2, -1))
    return {GRAM: lambda: cosine_gram(x), **table}


def measure(table: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of every way in every round."""
    times: dict[str, list[float]] = {name: [] for name in table}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name, way in table.items():
                seconds = clock(way, device)
                if turn > 1:
                    times[name].append(1e3 * seconds)
    return times


def against(times: dict[str, list[float]], name: str, base: str) -> dict[str, float]:
    ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": middle, "low": low, "high": high}


def summary(times: dict[str, list[float]]) -> list[dict[str, object]]:
    rows = []
    for name, values in times.items():
        bases = [GRAM] if name != RANK else [GRAM, BOTH, DOUBLE]
        ratios = {base: against(times, name, base) for base in bases}
        rows.append(
            {"what": name, "ms": statistics.median(values), "least_ms": min(values), "ratios": ratios, "limit": LIMITS.get(name)}
        )
    return rows


def table_of(result: dict[str, object], rows: list[dict[str, object]]) -> str:
    """The result as Markdown."""
    lines = [f"# Selection of image tokens: {result['tokens']} tokens of width {result['width']}, fp32, {result['device']}", ""]
    lines += [
        f"{result['rounds']} rounds, {result['threads']} threads, torch {result['torch']}; ratios within a round, median (quartiles).",
        "",
    ]
    lines += ["| what | ms, median | ms, least | beside | ratio | limit |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        for base, r in row["ratios"].items():
            ratio = f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})"
            lines.append(f"| {row['what']} | {row['ms']:.1f} | {row['least_ms']:.1f} | {base} | {ratio} | {row['limit'] or ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=576)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    rows = summary(measure(ways(args.tokens, args.width, device), args.rounds, device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})"
    result = {"device": name, "tokens": args.tokens, "width": args.width, "rounds": args.rounds, "threads": args.threads,
              "torch": torch.__version__, "sparsight": sparsight.__version__, "seed": 0, "rows": rows}  # fmt: skip
    text = table_of(result, rows)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
