"""sparsight compare: the main job. Parses, shows progress, prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import Baselines, BatchSize, Device, Equal, Limit, Precision, Seed, Vision, Word, items, one_model, split


def compare(
    word: Word = None,
    model: Vision = None,
    data: Annotated[
        Path | None, typer.Option(help="Images, best in class folders, or demo:small. The demo model brings its own.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Names or recipes, joined by commas. [default: all]")] = None,
    keep: Annotated[str, typer.Option(help="Fractions kept at each site, joined by commas.")] = "0.7,0.5",
    layers: Annotated[str, typer.Option(help="Blocks joined by '/'; several lists joined by commas.")] = "3/6/9",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/compare"),
    recipe: Annotated[list[str] | None, typer.Option(help="A whole recipe to add; may be given several times.")] = None,
    beside: Baselines = "random,resize",
    equal: Equal = "macs",
    batch_size: BatchSize = 32,
    limit: Limit = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
    shown: Annotated[int, typer.Option("--shown", "--images", help="Images shown in the report.")] = 4,
    seconds: Annotated[float, typer.Option(help="Time for the paired runs of each row.")] = 4.0,
) -> None:
    """Compare methods and budgets with the unpruned model: accuracy, agreement, speed, MACs, memory.

    Interrupted and started again with the same arguments, it goes on after the last finished row.

    \b
    Examples:
      sparsight compare --methods evit,tome,col_ln --keep 0.7,0.5 --layers 3/6/9
      sparsight compare --data demo:small --methods class_attention,col_ln --keep 0.5 --layers 0/3/6 --beside random,resize,pool
      sparsight compare vit_small_patch16_224 --data IMAGES --recipe col_ln:keep=0.7,layers=0/3/6
    """
    from ..evaluation.compare import compare as measure
    from .progress import Watch
    from .results import print_comparison

    with Watch(out) as watch:
        done = measure(
            one_model(word, model), data, split(methods) if methods else None, items(keep), items(layers), out,
            recipes=recipe or (), beside=items(beside), equal=items(equal), batch_size=batch_size, limit=limit, device=device, precision=precision, seed=seed,
            shown=shown, seconds=seconds, listen=watch,
        )  # fmt: skip
    print_comparison(done, out)
