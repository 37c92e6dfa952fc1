"""sparsight rank: effective rank and attention entropy of every image of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import BatchSize, Limit, Word, one_model


def rank(
    word: Word = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="demo, a timm name, ARCH@FILE.safetensors, a folder, or OWNER/NAME of a vision-language model. [default: demo]"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "--images", help="Folder of images. The demo model brings its own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for rank.csv, rank.json and the scatter plot rank.png.")] = None,
    score: Annotated[
        str | None, typer.Option(help="class, column_mean or col_ln. [default: class where there is a class token]")
    ] = None,
    space: Annotated[
        str, typer.Option(help="Rank of tokens (what a language model gets) or of the encoder's features.")
    ] = "tokens",
    layer: Annotated[int | None, typer.Option(help="Block of a vision model. [default: the last but one]")] = None,
    batch_size: BatchSize = 8,
    limit: Limit = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
) -> None:
    """Print how complex each image is to a model, and how rank and entropy go together over the folder.

    \b
    Examples:
      sparsight rank
      sparsight rank llava-hf/llava-1.5-7b-hf --data IMAGES --out runs/rank
    """
    from ..load.models import data_folder
    from ..look.rank import rank as measure
    from .results import print_ranking

    name = one_model(word, model)
    done = measure(
        name, data_folder(name, data), out, score=score, space=space, layer=layer, batch_size=batch_size, limit=limit, device=device,
    )  # fmt: skip
    print_ranking(done, out)
