"""sparsight calibrate: the averages that agile and mix compare an image with, for one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    model: Annotated[str, typer.Option(help="Folder of a vision-language model, or OWNER/NAME on the Hugging Face Hub.")],
    images: Annotated[Path, typer.Option(help="Folder of images like those to come.")],
    recipe: Annotated[str, typer.Option(help="agile or mix, with the parameters to use.")] = "agile",
    batch_size: Annotated[int, typer.Option(help="Images per forward.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Use only so many images.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="The recipe as JSON.")] = False,
) -> None:
    """Measure a model's average effective rank and attention entropy, and print the recipe that has them."""
    from ..look.calibrate import calibrate_named

    done = calibrate_named(model, images, recipe, batch_size, limit, device)
    typer.echo(str(done), err=True)
    for name, reason in done.skipped:
        typer.echo(f"skipped {name}: {reason}", err=True)
    typer.echo(done.recipe.to_json() if as_json else str(done.recipe))
