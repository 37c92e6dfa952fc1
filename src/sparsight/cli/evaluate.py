"""sparsight evaluate: accuracy on a data set, unpruned and under recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import Word, one_model


def evaluate(
    word: Word = None,
    model: Annotated[
        str | None,
        typer.Option(help="As for compare; for zero-shot a CLIP or SigLIP folder, or open_clip:ARCH@FILE. [default: demo]"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="A folder, a saved data set, Parquet, or hf:NAME[@CONFIG][:SPLIT].")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="A recipe such as evit:keep=0.7; may be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results and predictions.")] = Path("runs/evaluate"),
    mode: Annotated[str, typer.Option(help="classify, zero-shot, knn or probe.")] = "classify",
    preset: Annotated[str | None, typer.Option(help="A data set by name: imagenet, imagenet-v2, caltech101 ...")] = None,
    split: Annotated[str | None, typer.Option(help="Folder or split of the data set.")] = None,
    train: Annotated[str | None, typer.Option(help="Training images of knn and probe. [default: the split train]")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many images, spread over the classes.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward.")] = 32,
    workers: Annotated[int, typer.Option(help="Processes that read images; 0 reads in threads.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    k: Annotated[int, typer.Option(help="Neighbours of mode knn.")] = 20,
    template: Annotated[list[str] | None, typer.Option(help="Prompt with {} for the class; may be given several times.")] = None,
) -> None:
    """Accuracy of the unpruned model and of every recipe, with paired intervals and predictions for every image.

    Interrupted and started again with the same arguments, it goes on from there. Several processes: accelerate launch -m sparsight
    evaluate ..., or torchrun --nproc-per-node N -m sparsight evaluate ...

    \b
    Examples:
      sparsight evaluate --recipe evit:keep=0.7,layers=3/6/9
      sparsight evaluate CLIP_FOLDER --mode zero-shot --preset imagenet --data IMAGENET --recipe col_ln:keep=0.5
    """
    from ..evaluation.evaluate import evaluate as measure
    from ..runs.workers import leads
    from .progress import Watch
    from .results import print_evaluation

    with Watch(out) as watch:
        done = measure(
            one_model(word, model), data, recipe or (), out, mode=mode, preset=preset, split=split, train=train, limit=limit, batch_size=batch_size,
            workers=workers, device=device, precision=precision, seed=seed, k=k, templates=template, listen=watch,
        )  # fmt: skip
    if leads():
        print_evaluation(done, out)
