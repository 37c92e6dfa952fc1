"""sparsight robustness: what common corruptions of images do, unpruned and under recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import (
    BatchSize,
    DataSet,
    Device,
    Limit,
    Precision,
    Recipes,
    Seed,
    Split,
    Vision,
    Word,
    Workers,
    items,
    numbers,
    one_model,
)


def robustness(
    word: Word = None,
    model: Vision = None,
    data: DataSet = None,
    recipe: Recipes = None,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path("runs/robustness"),
    corruptions: Annotated[str, typer.Option(help="all, or names joined by commas: fog,jpeg_compression ...")] = "all",
    severity: Annotated[str, typer.Option(help="1 to 5, joined by commas.")] = "1,3",
    split: Split = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
) -> None:
    """Effect of the fifteen common corruptions on accuracy, effective rank and kept patches: table, JSON and figure.

    \b
    Example:
      sparsight robustness --recipe evit:keep=0.7 --corruptions fog,jpeg_compression --severity 3
    """
    from ..evaluation.robustness import robustness as measure
    from ..runs.workers import leads
    from .progress import Watch
    from .results import print_robustness

    levels = numbers(severity, int, "--severity")
    with Watch(out) as watch:
        done = measure(
            one_model(word, model), data, recipe or (), out, corruptions=items(corruptions), severities=levels, split=split, limit=limit,
            batch_size=batch_size, workers=workers, device=device, precision=precision, seed=seed, listen=watch,
        )  # fmt: skip
    if leads():
        print_robustness(done, out)
