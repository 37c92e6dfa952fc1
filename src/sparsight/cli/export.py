"""sparsight export: a pruned model as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import Vision, Word, one_model


def export(
    word: Word = None,
    model: Vision = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe such as evit:keep=0.7,layers=3/6/9. [default: unpruned]")] = None,
    format: Annotated[str, typer.Option(help="onnx, openvino or torch-export.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write. [default: MODEL.onnx, MODEL.xml or MODEL.pt2]")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "--images", help="Images for the check. [default: the embedded ones]")
    ] = None,
    limit: Annotated[int, typer.Option(help="Use only so many images.", min=2)] = 16,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the weights of matrix products (ONNX).")] = False,
    kept: Annotated[bool, typer.Option("--kept", help="The kept patches of each site as further outputs.")] = False,
) -> None:
    """Write the pruned model as an ONNX, OpenVINO or torch.export file and check it against PyTorch on real images.

    \b
    Examples:
      sparsight export demo --recipe col_ln:keep=0.7,layers=3/6/9 --out demo.onnx
      sparsight export demo --recipe col_ln:keep=0.7,layers=3/6/9 --format openvino --out demo.xml
    """
    from ..speed.export import export as write

    def say(text: str) -> None:
        typer.echo(text, err=True)

    chosen = one_model(word, model)
    typer.echo(write(chosen, recipe, out, format=format, data=data, limit=limit, int8=int8, kept=kept, listen=say))  # type: ignore[arg-type]
