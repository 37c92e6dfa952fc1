"""sparsight methods: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with defaults and choices.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/methods.md.")] = False,
) -> None:
    """List the methods, their parameters and where they come from.

    \b
    Examples:
      sparsight methods
      sparsight methods --json
    """
    if as_markdown:
        from .catalogue import markdown

        typer.echo(markdown(), nl=False)
        return
    from ..registry import methods as all_methods

    found = all_methods()
    if as_json:
        lines = [
            {
                "name": entry.name,
                "summary": entry.summary,
                "source": entry.source,
                "parameters": [{"name": p.name, "default": p.default, "choices": list(p.choices)} for p in entry.parameters],
            }
            for entry in found
        ]
        typer.echo(json.dumps(lines, indent=2))
        return
    from rich.text import Text

    from .table import console

    out = console()
    for entry in found:
        out.print(Text(entry.name, "bold"), Text(f"({', '.join(map(str, entry.parameters))})", "cyan"), sep="")
        out.print(Text(f"    {entry.summary}"))
        if entry.source:
            out.print(Text(f"    {entry.source}", "dim"))
