"""sparsight macs: multiply-accumulates of a pruned model."""

from __future__ import annotations

from typing import Annotated

import typer

from .words import Vision


def macs(
    words: Annotated[list[str] | None, typer.Argument(metavar="[MODEL] [RECIPE]", help="The same as --model and --recipe.")] = None,
    model: Vision = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe such as evit:keep=0.7,layers=3/6/9.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of the image in pixels.", min=1)] = 224,
) -> None:
    """Count multiply-accumulates per image, unpruned and pruned.

    \b
    Example:
      sparsight macs vit_small_patch16_224 evit:keep=0.7,layers=3/6/9
    """
    from ..registry import parse
    from ..speed.macs import macs as count
    from .table import say

    name, text = sort_out(words or [], model, recipe)
    wanted = parse(text)
    pruned, whole = count(name, wanted, image_size), count(name, None, image_size)
    say(f"{name} with {wanted} at {image_size}: {pruned / 1e9:.3f} GMACs, {100 * pruned / whole:.1f}% of {whole / 1e9:.3f}")


def sort_out(words: list[str], model: str | None, recipe: str | None) -> tuple[str, str]:
    """Model and recipe: words stand for what no option gives, the model first."""
    rest = list(words)
    if model is None and len(rest) > (recipe is None):
        model = rest.pop(0)
    if recipe is None and rest:
        recipe = rest.pop(0)
    if rest:
        raise typer.BadParameter(f"{' '.join(rest)} is too much; give one model and one recipe")
    if recipe is None:
        raise typer.BadParameter("give a recipe, such as --recipe evit:keep=0.7,layers=3/6/9")
    return model or "demo", recipe
