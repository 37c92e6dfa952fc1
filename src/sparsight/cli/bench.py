"""sparsight bench: latency and throughput. Parses, shows progress, prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..speed.bench_result import Bench


def bench(
    model: Annotated[str, typer.Option(help="demo, a timm name, hf_hub:REPO, a folder, or ARCH@FILE.safetensors.")] = "demo",
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe; may be given several times. [default: eight usual ones]")
    ] = None,
    backend: Annotated[str, typer.Option(help="eager, compile, onnxruntime, onnxruntime-int8, joined by commas.")] = "eager",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, joined by commas.")] = "fp32",
    batch_size: Annotated[str, typer.Option(help="Images per forward, joined by commas. [default: 1,8,32]")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder of images. [default: the embedded ones]")] = None,
    seconds: Annotated[float | None, typer.Option(help="Time for the paired runs at each batch size. [default: 4]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer recipes, batches and runs: about two minutes.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench"),
) -> None:
    """Time recipes in every engine (precision x backend), beside the unpruned model in the same engine.

    Interrupted and started again with the same arguments, it goes on after the last finished row.
    """
    from ..speed.bench import bench as measure
    from .compare import items
    from .progress import Watch

    try:
        sizes = [int(size) for size in items(batch_size)]
    except ValueError:
        raise typer.BadParameter(f"--batch-size {batch_size}: give whole numbers joined by commas, such as 1,32") from None
    with Watch(out) as watch:
        done = measure(
            model, recipe or (), out, backends=items(backend), precisions=items(precision), batch_sizes=sizes, data=data,
            seconds=seconds, quick=quick, device=device, listen=watch,
        )  # fmt: skip
    print_bench(done, out)


def print_bench(done: Bench, out: Path) -> None:
    """The table and where the files are."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 170
    sheet = Table(title=str(done), title_justify="left", box=None, pad_edge=False, header_style="dim")
    heads = (
        "recipe",
        "engine",
        "MACs x",
        "p50 ms",
        "p95",
        "speed-up",
        "of MACs",
        "img/s",
        "batch",
        "speed-up",
        "of MACs",
        "sites %",
        "MB",
    )
    for name in heads:
        sheet.add_column(
            name, justify="left" if name in ("recipe", "engine") else "right", overflow="fold", no_wrap=name != "recipe"
        )
    for row in done.rows:
        one, best = row.latency, row.throughput
        gains = [f"{t.speedup.median:.2f} ({t.speedup.low:.2f}-{t.speedup.high:.2f})" for t in (one, best)]
        sheet.add_row(
            row.recipe, f"{row.backend} {row.precision}", f"{row.mac_ratio:.2f}", f"{1e3 * one.seconds:.1f}", f"{1e3 * one.p95:.1f}",
            gains[0], f"{row.share(one):.2f}", f"{best.images_per_second:.1f}", str(best.batch), gains[1], f"{row.share(best):.2f}",
            "-" if row.site_share is None else f"{100 * row.site_share:.0f}",
            "-" if row.peak_memory is None else f"{row.peak_memory / 1e6:.0f}",
        )  # fmt: skip
    console.print(sheet)
    console.print(f"wrote {out / 'report.html'}, {out / 'results.json'}", markup=False, soft_wrap=True)
