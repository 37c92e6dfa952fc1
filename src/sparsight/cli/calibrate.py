"""sparsight calibrate: the averages that agile and mix compare an image with, for one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import BatchSize, Language, Word, one_model


def calibrate(
    word: Word = None,
    model: Language = None,
    data: Annotated[
        Path | None, typer.Option("--data", "--images", help="Folder of images like those to come. demo-vlm brings its own.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="agile or mix, with the parameters to use.")] = "agile",
    batch_size: BatchSize = 8,
    limit: Annotated[int | None, typer.Option(help="Use only so many images.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="The recipe as JSON.")] = False,
) -> None:
    """Measure a model's average effective rank and attention entropy, and print the recipe that has them.

    \b
    Example:
      sparsight calibrate llava-hf/llava-1.5-7b-hf --data IMAGES --recipe agile:tokens=64
    """
    from ..errors import shown
    from ..load.models import data_folder
    from ..look.calibrate import calibration

    name = one_model(word, model, None)
    done = calibration(name, data_folder(name, data), recipe, batch_size=batch_size, limit=limit, device=device)
    typer.echo(str(done), err=True)
    for name, reason in done.skipped:
        typer.echo(shown(f"skipped {name}: {reason}", 500), err=True)
    typer.echo(done.recipe.to_json() if as_json else str(done.recipe))
