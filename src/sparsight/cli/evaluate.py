"""sparsight evaluate: accuracy on a data set, unpruned and under recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import (
    Baselines,
    BatchSize,
    DataSet,
    Device,
    Equal,
    Limit,
    Precision,
    Recipes,
    Seed,
    Split,
    Word,
    Workers,
    items,
    one_model,
)


def evaluate(
    word: Word = None,
    model: Annotated[
        str | None,
        typer.Option(help="As for compare; for zero-shot a CLIP or SigLIP folder, or open_clip:ARCH@FILE. [default: demo]"),
    ] = None,
    data: DataSet = None,
    recipe: Recipes = None,
    out: Annotated[Path, typer.Option(help="Folder for results and predictions.")] = Path("runs/evaluate"),
    mode: Annotated[str, typer.Option(help="classify, zero-shot, knn or probe.")] = "classify",
    preset: Annotated[str | None, typer.Option(help="A data set by name: imagenet, imagenet-v2, caltech101 ...")] = None,
    split: Split = None,
    train: Annotated[str | None, typer.Option(help="Training images of knn and probe. [default: the split train]")] = None,
    limit: Limit = None,
    beside: Baselines = "",
    equal: Equal = "macs",
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
    k: Annotated[int, typer.Option(help="Neighbours of mode knn.")] = 20,
    template: Annotated[list[str] | None, typer.Option(help="Prompt with {} for the class; may be given several times.")] = None,
) -> None:
    """Accuracy of the unpruned model and of every recipe, with paired intervals and predictions for every image.

    Interrupted and started again with the same arguments, it goes on from there. Several processes: accelerate launch -m sparsight
    evaluate ..., or torchrun --nproc-per-node N -m sparsight evaluate ...

    \b
    Examples:
      sparsight evaluate --recipe evit:keep=0.7,layers=3/6/9
      sparsight evaluate --data demo:small --recipe similarity:keep=0.15,layers=input --beside random,resize,pool --equal macs,tokens
      sparsight evaluate CLIP_FOLDER --mode zero-shot --preset imagenet --data IMAGENET --recipe col_ln:keep=0.5
    """
    from ..evaluation.evaluate import evaluate as measure
    from ..runs.workers import leads
    from .progress import Watch
    from .results import print_evaluation

    with Watch(out) as watch:
        done = measure(
            one_model(word, model), data, recipe or (), out, mode=mode, preset=preset, split=split, train=train, limit=limit, beside=items(beside), equal=items(equal),
            batch_size=batch_size, workers=workers, device=device, precision=precision, seed=seed, k=k, templates=template, listen=watch,
        )  # fmt: skip
    if leads():
        print_evaluation(done, out)
