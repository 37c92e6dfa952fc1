"""sparsight show: a picture of the score and the kept patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    image: Annotated[Path, typer.Argument(help="Image file, or demo:small.")],
    model: Annotated[str, typer.Option(help="demo, a timm name, hf_hub:REPO, a folder, or ARCH@FILE.safetensors.")] = "demo",
    recipe: Annotated[str, typer.Option(help="Recipe such as evit:keep=0.7,layers=3/6/9.")] = "col_ln:keep=0.7,layers=3/6/9",
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("kept.png"),
) -> None:
    """Draw the heat map of the score and the kept patches, layer by layer.

    \b
    Example:
      sparsight show PHOTO.jpg --recipe evit:keep=0.7,layers=3/6/9 --out kept.png
    """
    from ..look.show import show as draw
    from .table import say

    say(str(draw(image, model, recipe, out)))
