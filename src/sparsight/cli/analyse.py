"""sparsight analyse: attention and scores of a model, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import BatchSize, Device, Limit, Vision, Word, numbers, one_model


def analyse(
    word: Word = None,
    model: Vision = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images. The demo model brings its own.")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A recipe such as col_ln:keep=0.5; may be given several times. Its layers do not matter."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures, tables and the page report.html.")] = Path("runs/analyse"),
    orders: Annotated[str, typer.Option(help="Orders of the entropy, joined by commas; 1 is Shannon's.")] = "1,2,4,inf",
    layers: Annotated[str, typer.Option(help="Blocks joined by '/', or all.")] = "all",
    limit: Limit = None,
    shown: Annotated[int, typer.Option("--shown", "--images", help="Images with heat maps.")] = 2,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the random tokens that ranks are compared with.")] = 0,
) -> None:
    """Entropy and reach of the attention, score heat maps, agreement of kept tokens and their effective rank, block by block.

    Interrupted and started again with the same arguments, it goes on from there.

    \b
    Example:
      sparsight analyse --recipe col_ln:keep=0.5 --recipe class_attention:keep=0.5 --layers 0/3/6/9
    """
    from ..look.analyse import analyse as measure
    from .progress import Watch
    from .results import print_analysis

    wanted = numbers(orders, float, "--orders")
    with Watch(out) as watch:
        done = measure(
            one_model(word, model), data, recipe or (), out, orders=wanted, layers=layers, limit=limit, shown=shown, batch_size=batch_size,
            device=device, seed=seed, listen=watch,
        )  # fmt: skip
    print_analysis(done, out)
