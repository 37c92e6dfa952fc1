"""sparsight bench-vlm: the stages of a vision-language model. Parses, shows progress, prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..speed.stage_result import StageBench

HEADS = ("recipe", "tokens", "GMACs", "vision", "select", "prefill", "/token", "all ms", "prefill x", "of MACs", "token x", "all x",
         "KV MB", "peak MB")  # fmt: skip


def bench_vlm(
    model: Annotated[str | None, typer.Option(help="Folder or Hub repository of a LLaVA or Qwen-VL model.")] = None,
    config: Annotated[str | None, typer.Option(help="Instead of a model: tiny or llava-7b-shape, with random weights.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe such as vispruner:tokens=64; may be given several times.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images. [default: noise]")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text beside each image.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time, one image each.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 16,
    layers: Annotated[int | None, typer.Option(help="Cut the language model to its first layers.")] = None,
    rounds: Annotated[int, typer.Option(help="Pairs of runs per recipe.")] = 6,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16; auto is bf16 on CUDA, else fp32.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench-vlm"),
) -> None:
    """Time vision encoder, selection, prefill and decoding, unpruned and pruned in turn; memory, KV cache and MACs.

    Interrupted and started again with the same arguments, it goes on after the last finished row.
    """
    from ..speed.bench_vlm import bench_vlm as measure
    from .progress import Watch

    with Watch(out) as watch:
        done = measure(
            model, recipe or (), out, config=config, images=images, prompt=prompt, batch_size=batch_size, new_tokens=new_tokens,
            layers=layers, rounds=rounds, device=device, precision=precision, seed=seed, listen=watch,
        )  # fmt: skip
    print_stages(done, out)


def print_stages(done: StageBench, out: Path) -> None:
    """The table and where the files are. Times in milliseconds, medians; speed-ups with quartiles."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 190
    sheet = Table(title=str(done), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in HEADS:
        sheet.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=name != "recipe", overflow="fold")
    for row in done.rows:
        times = [f"{1e3 * row.seconds(name).median:.1f}" for name in ("vision", "selection", "prefill", "per_token", "total")]
        gains = [f"{g.median:.2f} ({g.low:.2f}-{g.high:.2f})" for g in map(row.gain, ("prefill", "per_token", "total"))]
        sheet.add_row(
            row.recipe, row.tokens, f"{row.macs.reading / 1e9:.3g}", *times, gains[0], f"{done.share(row):.2f}", *gains[1:],
            f"{row.footprint.cache / 1e6:.2f}", f"{row.footprint.peak / 1e6:.0f}",
        )  # fmt: skip
    console.print(sheet)
    for note in done.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"wrote {out / 'report.html'}, {out / 'results.json'}", markup=False, soft_wrap=True)
