"""sparsight show: a picture of the score and the kept patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    images: Annotated[list[str], typer.Argument(help="Image files, or demo:small.")],
    model: Annotated[
        str, typer.Option(help="demo, demo-vlm, a timm name, hf_hub:REPO, a folder, or ARCH@FILE.safetensors.")
    ] = "demo",
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipe such as evit:keep=0.7,layers=3/6/9; may be given several times. [default: col_ln, or fastervlm of a vision-language model]"
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask a vision-language model.")] = None,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .svg, or .gif and .webp, which move.")] = Path("kept.png"),
) -> None:
    """Draw what recipes keep of images, and what the model says before and after.

    One image under one recipe: the score and the kept patches, layer by layer. Several: a table of both. As .gif or .webp: the layers one
    after the other.

    \b
    Examples:
      sparsight show PHOTO.jpg --recipe evit:keep=0.7,layers=3/6/9 --out kept.png
      sparsight show A.jpg B.jpg --recipe tome:keep=0.5 --recipe evit:keep=0.5 --out kept.gif
      sparsight show PHOTO.jpg --model demo-vlm --recipe divprune:tokens=32 --question "what colour is the star ?"
    """
    from ..load.vlms import speaks
    from ..look.show import show as draw
    from .table import say

    usual = "fastervlm:keep=0.25" if speaks(model) else "col_ln:keep=0.7,layers=3/6/9"
    say(str(draw(images, model, recipe or usual, out, question=question)))
