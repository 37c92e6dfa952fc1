"""sparsight robustness: what common corruptions of images do, unpruned and under recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import Vision, Word, one_model


def robustness(
    word: Word = None,
    model: Vision = None,
    data: Annotated[str | None, typer.Option(help="A folder, a saved data set, Parquet, or hf:NAME[@CONFIG][:SPLIT].")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="A recipe such as evit:keep=0.7; may be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path("runs/robustness"),
    corruptions: Annotated[str, typer.Option(help="all, or names joined by commas: fog,jpeg_compression ...")] = "all",
    severity: Annotated[str, typer.Option(help="1 to 5, joined by commas.")] = "1,3",
    split: Annotated[str | None, typer.Option(help="Folder or split of the data set.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many images, spread over the classes.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward.")] = 32,
    workers: Annotated[int, typer.Option(help="Processes that read images; 0 reads in threads.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Effect of the fifteen common corruptions on accuracy, effective rank and kept patches: table, JSON and figure.

    \b
    Example:
      sparsight robustness --recipe evit:keep=0.7 --corruptions fog,jpeg_compression --severity 3
    """
    from ..evaluation.robustness import robustness as measure
    from ..runs.workers import leads
    from .compare import items
    from .progress import Watch
    from .results import print_robustness

    try:
        levels = [int(level) for level in items(severity)]
    except ValueError:
        raise typer.BadParameter(f"{severity!r} is no list of whole numbers", param_hint="--severity") from None
    with Watch(out) as watch:
        done = measure(
            one_model(word, model), data, recipe or (), out, corruptions=items(corruptions), severities=levels, split=split, limit=limit,
            batch_size=batch_size, workers=workers, device=device, precision=precision, seed=seed, listen=watch,
        )  # fmt: skip
    if leads():
        print_robustness(done, out)
