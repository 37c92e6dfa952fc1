"""sparsight export: a pruned model as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(help="demo, a timm name, hf_hub:REPO, a folder, or ARCH@FILE.safetensors.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe such as evit:keep=0.7,layers=3/6/9. [default: unpruned]")] = None,
    format: Annotated[str, typer.Option(help="onnx or torch-export.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write. [default: MODEL.onnx or MODEL.pt2]")] = None,
    data: Annotated[Path | None, typer.Option(help="Images for the check. [default: the embedded ones]")] = None,
    limit: Annotated[int, typer.Option(help="Use only so many images.", min=2)] = 16,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the weights of matrix products (ONNX).")] = False,
    kept: Annotated[bool, typer.Option("--kept", help="The kept patches of each site as further outputs.")] = False,
) -> None:
    """Write the pruned model as an ONNX or torch.export file and check it against PyTorch on real images."""
    from ..speed.export import export as write

    def say(text: str) -> None:
        typer.echo(text, err=True)

    typer.echo(write(model, recipe, out, format=format, data=data, limit=limit, int8=int8, kept=kept, listen=say))  # type: ignore[arg-type]
