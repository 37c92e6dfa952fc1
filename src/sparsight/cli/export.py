"""sparsight export: a pruned model as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import PruneError
from .words import Word, one_model

Model = Annotated[
    str | None,
    typer.Option(help="demo, a timm name, hf_hub:REPO, a folder, ARCH@FILE.safetensors; for OpenVINO demo-vlm or another LLaVA."),
]


def export(
    word: Word = None,
    model: Model = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe such as evit:keep=0.7,layers=3/6/9. [default: unpruned]")] = None,
    format: Annotated[str, typer.Option(help="onnx, openvino or torch-export.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write, folder of a vision-language model. [default: MODEL.onnx, MODEL.xml, MODEL.pt2, MODEL-openvino]"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "--images", help="Images for the check. [default: the embedded ones]")
    ] = None,
    limit: Annotated[int, typer.Option(help="Use only so many images.", min=2)] = 16,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the weights of matrix products (ONNX).")] = False,
    kept: Annotated[bool, typer.Option("--kept", help="The kept patches of each site as further outputs.")] = False,
) -> None:
    """Write the pruned model as an ONNX, OpenVINO or torch.export file and check it against PyTorch on real images.

    A vision-language model (LLaVA, OpenVINO) becomes a folder; with --out FILE.xml demo-vlm's vision tower alone becomes a file.

    \b
    Examples:
      sparsight export demo --recipe col_ln:keep=0.7,layers=3/6/9 --out demo.onnx
      sparsight export demo --recipe col_ln:keep=0.7,layers=3/6/9 --format openvino --out demo.xml
      sparsight export demo-vlm --recipe fastervlm:tokens=64 --format openvino --out demo-vlm-64
    """
    from ..load.vlms import speaks
    from ..speed.export import export as write
    from ..speed.export_vlm import export_vlm

    def say(text: str) -> None:
        typer.echo(text, err=True)

    chosen = one_model(word, model)
    if format == "openvino" and speaks(chosen) and (out is None or out.suffix != ".xml"):
        if int8 or kept:
            raise PruneError(
                f"{'--int8' if int8 else '--kept'} is for image models; leave it out (kept tokens are in `open_vlm(OUT).kept`)"
            )
        typer.echo(export_vlm(chosen, recipe, out, data=data, limit=limit, listen=say))
        return
    typer.echo(write(chosen, recipe, out, format=format, data=data, limit=limit, int8=int8, kept=kept, listen=say))  # type: ignore[arg-type]
