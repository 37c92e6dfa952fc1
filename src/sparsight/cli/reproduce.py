"""sparsight reproduce: published tables and figures, listed and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="ID", help="A table or figure. Without it all are listed.")] = None,
    macs: Annotated[bool, typer.Option("--macs", help="Count the GFLOPs of the tables that have them; no weights needed.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="Instead of the paper's: NAME, or KEY=NAME for one of several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Folder of images, or KEY=FOLDER for one of several data sets.")] = None,
    only: Annotated[str | None, typer.Option(help="Only rows that contain this text.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many images, spread over the classes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. [default: runs/reproduce/ID]")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON instead of a table.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/reproduce.md.")] = False,
) -> None:
    """List the published tables and figures of the papers, or run one: published against measured, and what is missing.

    \b
    Examples:
      sparsight reproduce
      sparsight reproduce colln_table02 --data imagenet=FOLDER
      sparsight reproduce entropy_table03 --macs
    """
    from . import reproduce_print as show

    if as_markdown:
        from ..reproduction.published_page import markdown

        typer.echo(markdown(), nl=False)
    elif macs:
        show.counts(name, only, as_json)
    elif name is None:
        show.listing(as_json)
    else:
        from ..reproduction.reproduce import reproduce as run
        from .progress import Count

        with Count(out or Path("runs/reproduce") / name) as count:
            done = run(
                name, model, data, out, only=only, limit=limit, batch_size=batch_size, device=device, precision=precision,
                seed=seed, listen=count,
            )  # fmt: skip
        show.result(done, as_json)
