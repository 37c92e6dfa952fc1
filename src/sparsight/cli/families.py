"""sparsight families: the models that can be pruned."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..models.family import Family


def families(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the model families: model classes by name, whether they have a class token, which some methods score by, and whether tokens can leave
    inside their language model.

    \b
    Examples:
      sparsight families
      sparsight families --json
    """
    from ..prune import families as known
    from .table import Column, print_table

    found = [
        FamilyLine(kind.name, class_token(kind), kind.classes, "by decoder" if getattr(kind, "language", False) else "no")
        for kind in known()
    ]
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in found], indent=2))
        return
    columns = (
        Column("family", name=True),
        Column("class token", 1),
        Column("inside the language model"),
        Column("model classes", name=True),
    )
    print_table("", columns, [(line.name, line.class_token, line.inside, ", ".join(line.classes)) for line in found])


@dataclass(frozen=True)
class FamilyLine:
    """A model family. class_token: yes, no, or "by model" where the family looks at the model for that; classes: of the models, by their names;
    inside: whether methods inside the language model fit: no, or by decoder (docs/reference/lvlm.md)."""

    name: str
    class_token: str
    classes: tuple[str, ...]
    inside: str


def class_token(kind: type[Family]) -> str:
    """Whether models of a family have a class token. A family that has to look at the model for that cannot tell without one."""
    try:
        return "yes" if kind.__new__(kind).class_token else "no"
    except AttributeError:
        return "by model"
