"""sparsight vtc-split: of a finished comparison, the questions that need the full picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def vtc_split(
    run: Annotated[Path, typer.Argument(help="Folder that `sparsight compare` wrote for a vision-language model.")],
    small: Annotated[
        str | None, typer.Option(help="The row of the smaller pictures. [default: the resize row with the fewest tokens]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
) -> None:
    """Score every recipe of a comparison on the questions that a smaller picture loses, and on those that it does not.

    Most questions are as easy about a smaller picture; methods differ on the others (VTC-Bench, arXiv:2510.07143).

    Example: sparsight vtc-split runs/vlm --small resize:tokens=64
    """
    from ..evaluation.vtc_split import vtc_split as split
    from ..runs.store import write_text
    from .results import print_vtc_split

    done = split(run, small)
    if out is not None:
        write_text(out, done.to_json())
    print_vtc_split(done)
