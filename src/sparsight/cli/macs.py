"""sparsight macs: multiply-accumulates of a pruned model."""

from __future__ import annotations

from typing import Annotated

import typer


def macs(
    model: Annotated[str, typer.Argument(help="Model: demo, a timm name, a folder, or ARCH@FILE.safetensors.")],
    recipe: Annotated[str, typer.Argument(help="Recipe such as evit:keep=0.7,layers=3/6/9.")],
    image_size: Annotated[int, typer.Option(help="Side of the image in pixels.", min=1)] = 224,
) -> None:
    """Count multiply-accumulates per image, unpruned and pruned."""
    from ..registry import parse
    from ..speed.macs import macs as count

    wanted = parse(recipe)
    pruned, whole = count(model, wanted, image_size), count(model, None, image_size)
    typer.echo(f"{model} with {wanted} at {image_size}: {pruned / 1e9:.3f} GMACs, {100 * pruned / whole:.1f}% of {whole / 1e9:.3f}")
