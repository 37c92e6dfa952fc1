"""sparsight families: the models that can be pruned."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def families(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the model families: model classes by name, and whether they have a class token, which some methods score by.

    \b
    Examples:
      sparsight families
      sparsight families --json
    """
    from ..prune import families as known
    from .catalogue import describe
    from .table import Column, print_table

    found = describe(known())
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in found], indent=2))
        return
    columns = (Column("family", name=True), Column("class token", 1), Column("model classes", name=True))
    print_table("", columns, [(line.name, line.class_token, ", ".join(line.classes)) for line in found])
