"""sparsight bench: latency and throughput. Parses, shows progress, prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import Device, Vision, Word, items, numbers, one_model


def bench(
    word: Word = None,
    model: Vision = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe; may be given several times. [default: eight usual ones]")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="eager, compile, onnxruntime, onnxruntime-int8, openvino, joined by commas.")
    ] = "eager",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, joined by commas.")] = "fp32",
    batch_size: Annotated[str, typer.Option(help="Images per forward, joined by commas. [default: 1,8,32]")] = "",
    data: Annotated[
        Path | None, typer.Option("--data", "--images", help="Folder of images, or demo:small. [default: the embedded ones]")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Time for the paired runs at each batch size. [default: 4]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer recipes, batches and runs: about two minutes.")] = False,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench"),
) -> None:
    """Time recipes in every engine (precision x backend), beside the unpruned model in the same engine.

    Interrupted and started again with the same arguments, it goes on after the last finished row.

    \b
    Examples:
      sparsight bench --quick
      sparsight bench --backend eager,openvino --recipe col_ln:keep=0.7,layers=3/6/9 --batch-size 1,16
    """
    from ..speed.bench import bench as measure
    from .progress import Watch
    from .results import print_bench

    sizes = numbers(batch_size, int, "--batch-size")
    with Watch(out) as watch:
        done = measure(
            one_model(word, model), recipe or (), out, backends=items(backend), precisions=items(precision), batch_sizes=sizes, data=data,
            seconds=seconds, quick=quick, device=device, listen=watch,
        )  # fmt: skip
    print_bench(done, out)
