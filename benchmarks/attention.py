"""Time and memory of attention statistics beside the explicit matrix and beside one SDPA call.

    python benchmarks/attention.py --out benchmarks/results/attention_cpu.json [--quick] [--device cuda --dtype bf16]

q, k, v [1, H, N, 64]. Every way runs once per round and the ratios within each round give median and quartiles. Explicit is
softmax(q k^T) and then the statistic, where the matrix fits in `--matrix-gib`. Peak memory is that of tensors made on the way.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sparsight
from sparsight.ops import attention
from sparsight.speed.timing import Alive, clock

LENGTHS, QUICK = (197, 577, 1025, 4097, 16385), (197, 577, 1025, 4097)
HEADS, WIDTH, PREFIX = (6, 12, 16), 64, 1
SCALE = WIDTH**-0.5
STATISTICS = ("class row", "Col-Ln", "Renyi", "Shannon")
LIMITS = {"class row": (None, 0.05), "Col-Ln": (0.6, 1.3), "Renyi": (0.6, 1.3)}
"""Aims at N = 4,097 on a CPU: time beside explicit, and beside SDPA. Memory: 5% of the matrix."""


def whole(q: Tensor, k: Tensor, name: str) -> Tensor:
    """The statistic from the explicit matrix."""
    first = 0 if name in ("class row", "Col-Ln") else PREFIX
    a = ((q[:, :, first:] * SCALE) @ k[:, :, first:].transpose(-2, -1)).softmax(-1)
    if name == "class row":
        return a[:, :, 0, PREFIX:]
    if name == "Col-Ln":
        return a[:, :, PREFIX:, PREFIX:].float().square().sum(-2).sqrt().mean(1)
    if name == "Renyi":
        return -a.float().square().sum(-1).log().mean(1)
    return torch.special.entr(a.float()).sum(-1).mean(1)


def streamed(q: Tensor, k: Tensor, name: str) -> Tensor:
    if name == "class row":
        return attention.class_row(q, k, PREFIX, SCALE)
    if name == "Col-Ln":
        return attention.column_norm(q, k, PREFIX, SCALE, 2.0)
    return attention.row_entropy(q, k, PREFIX, SCALE, 2.0 if name == "Renyi" else 1.0)


def ways(q: Tensor, k: Tensor, v: Tensor, explicit: bool) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the explicit class row is the whole matrix as well and is left out."""
    table: dict[str, Callable[[], object]] = {"SDPA": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)}
    for name in STATISTICS:
        table[name] = lambda name=name: streamed(q, k, name)
        if explicit and name != "class row":
            table[f"explicit {name}"] = lambda name=name: whole(q, k, name)
    return table


def peak(way: Callable[[], object], device: torch.device) -> int:
    """Bytes at the highest point, beside what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with Alive() as alive:
        way()
    return alive.peak


def quartiles(values: list[float]) -> list[float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return [middle, low, high]


def case(n: int, heads: int, options: argparse.Namespace) -> list[dict[str, object]]:
    device, dtype = torch.device(options.device), {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, WIDTH, generator=draw).to(device, dtype) for _ in range(3))
    matrix = heads * n * n * q.element_size()
    table = ways(q, k, v, 3 * matrix <= options.matrix_gib * 2**30)
    memory = {name: peak(way, device) for name, way in table.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in table}
    start = time.perf_counter()
    while len(times["SDPA"]) < 3 or (time.perf_counter() - start < options.seconds and len(times["SDPA"]) < 50):
        for name, way in table.items():
            times[name].append(clock(way, device))
    gc.collect()
    rows = []
    for name in STATISTICS:
        row: dict[str, object] = {"tokens": n, "heads": heads, "what": name, "rounds": len(times[name]),
                                  "ms": [1e3 * t for t in quartiles(times[name])], "bytes": memory[name],
                                  "of_matrix": memory[name] / matrix}  # fmt: skip
        for base in ("SDPA", f"explicit {name}"):
            if base in times:
                row[base.partition(" ")[0]] = quartiles([a / b for a, b in zip(times[name], times[base], strict=True)])
        rows.append(row)
    return rows


def table_of(result: dict[str, object], rows: list[dict[str, object]]) -> str:
    """The result as Markdown."""
    lines = [f"# Attention statistics: {result['device']}, {result['dtype']}, {result['threads']} threads, torch {result['torch']}", "",
             "Heads of width 64, one image. Ratios are of time within a round, median (quartiles); memory is beside the explicit matrix.",
             "" if not result["note"] else f"\n{result['note']}\n",
             "| N | H | what | ms | of SDPA | of explicit | peak memory, MiB (of the matrix) | rounds |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip

    def ratio(row: dict[str, object], base: str) -> str:
        return "{:.2f} ({:.2f}-{:.2f})".format(*row[base]) if base in row else ""  # type: ignore[misc]

    for row in rows:
        lines.append(
            f"| {row['tokens']} | {row['heads']} | {row['what']} | {row['ms'][0]:.1f} | {ratio(row, 'SDPA')} | {ratio(row, 'explicit')} "  # type: ignore[index]
            f"| {row['bytes'] / 2**20:.1f} ({row['of_matrix']:.1%}) | {row['rounds']} |"  # type: ignore[operator]
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 4,097 tokens, 6 heads, a minute")
    parser.add_argument("--seconds", type=float, help="time per size (3 to 50 rounds); 8, quick 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--matrix-gib", type=float, default=4.0, help="memory for the explicit way, three matrices")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--note", default="", help="a line in the result, e.g. on the state of the machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.seconds = options.seconds or (3.0 if options.quick else 8.0)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for n in QUICK if options.quick else LENGTHS:
            for heads in HEADS[:1] if options.quick else HEADS:
                rows += case(n, heads, options)
                print(f"N = {n}, H = {heads} done", flush=True)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"CPU ({platform.machine()})"
    result = {"device": name, "dtype": options.dtype, "threads": options.threads, "torch": torch.__version__, "note": options.note,
              "python": platform.python_version(), "sparsight": sparsight.__version__, "seed": 0, "limits": LIMITS, "rows": rows}  # fmt: skip
    text = table_of(result, rows)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
