"""sparsight reproduce: published tables and figures, listed and run."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from ..errors import PruneError
from .words import BatchSize, Device, Limit, Precision, Seed


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="ID", help="A table or figure. Without it all are listed.")] = None,
    macs: Annotated[bool, typer.Option("--macs", help="Count the GFLOPs of the tables that have them; no weights needed.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="Instead of the paper's: NAME, or KEY=NAME for one of several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Folder of images, or KEY=FOLDER for one of several data sets.")] = None,
    only: Annotated[str | None, typer.Option(help="Only rows that contain this text.")] = None,
    limit: Limit = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. [default: runs/reproduce/ID]")] = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    precision: Precision = "fp32",
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON instead of a table.")] = False,
    page: Annotated[
        Path | None, typer.Option(help="Write one page of all measured results with the published ones beside them.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/reference/reproduce.md.")] = False,
) -> None:
    """List the published tables and figures of the papers, or run one: published against measured, and what is missing.

    \b
    Examples:
      sparsight reproduce
      sparsight reproduce colln_table02 --data imagenet=FOLDER
      sparsight reproduce entropy_table03 --macs
      sparsight reproduce --page runs/leaderboard.html
    """
    show = part("printing")
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(part("leaderboard").page(), encoding="utf-8")
        typer.echo(f"wrote {page}")
    elif as_markdown:
        typer.echo(part("published_page").markdown(), nl=False)
    elif macs:
        show.counts(name, only, as_json)
    elif name is None:
        show.listing(as_json)
    else:
        from .progress import Watch

        with Watch(out or Path("runs/reproduce") / name) as watch:
            done = part("reproduce").reproduce(
                name, model, data, out, only=only, limit=limit, batch_size=batch_size, device=device, precision=precision,
                seed=seed, listen=watch,
            )  # fmt: skip
        show.result(done, as_json)


def part(name: str) -> ModuleType:
    """A module of the folder `reproduction`, which lies beside src in a checkout, or in the current folder."""
    if "reproduction" not in sys.modules:
        places = [place / "reproduction" for place in (Path(__file__).parents[3], Path.cwd())]
        folder = next((place for place in places if (place / "tables" / "index.toml").is_file()), None)
        if folder is None:
            raise PruneError(
                "the published tables are not part of the installed package; run this in a checkout of the repository, "
                "or copy its folder reproduction/ to the current one"
            )
        sys.path.insert(0, str(folder.parent))
        try:
            import_module("reproduction")
        finally:
            sys.path.remove(str(folder.parent))
    return import_module(f"reproduction.{name}")
