"""sparsight save: a pruned model as a folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PruneError
from .words import Word, one_model

if TYPE_CHECKING:
    from ..load.models import Loaded
    from ..load.vlms import LoadedVlm
    from ..recipe import Recipe


def save(
    word: Word = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="A vision model as for compare, or a vision-language model as for evaluate-vlm. [default: demo]"
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe, or what tune wrote (its folder, or recipe.json); may be given several times. [default: the model's own]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    evidence: Annotated[
        Path | None,
        typer.Option(help="Folder or results.json of compare, evaluate, evaluate-vlm, bench, tune or train, for the model card."),
    ] = None,
    push: Annotated[str | None, typer.Option(help="OWNER/NAME on the Hugging Face Hub to upload to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Write a pruned model with its recipe, measurements and a model card: sparsight.load gives it back, pruned the same way.

    \b
    Examples:
      sparsight save demo --recipe col_ln:keep=0.7,layers=3/6/9 --out mine
      sparsight save demo --recipe runs/tune --out mine
      sparsight save mine --push OWNER/NAME
    """
    from ..handle import handles
    from ..prune import prune
    from ..saving.hub import push_to_hub
    from ..saving.save import save_pretrained

    chosen = one_model(word, model)
    if (out is None) == (push is None):
        raise typer.BadParameter("give either --out FOLDER or --push OWNER/NAME")
    recipes = [found for one in recipe or () for found in recipes_of(one)]
    loaded = opened(chosen, fresh=bool(recipes))
    for one in recipes:
        prune(loaded.model, one)
    if not handles(loaded.model):
        raise typer.BadParameter(f"{chosen} is not pruned; give --recipe, such as evit:keep=0.7")
    numbers = evidence or next((tuned(one) for one in recipe or () if tuned(one) is not None), None)
    if out is not None:
        typer.echo(f"wrote {save_pretrained(loaded, out, numbers)}")
    elif push is not None:
        typer.echo(f"pushed to {push_to_hub(loaded, push, numbers, private=private or None)}")


def opened(name: str, fresh: bool) -> Loaded | LoadedVlm:
    """The model of either kind; fresh: without the recipes that it was saved with."""
    from ..handle import unprune
    from ..load.models import load
    from ..load.vlms import load_vlm, speaks

    loaded = load_vlm(name) if speaks(name) else load(name)
    if fresh:
        unprune(loaded.model)
    return loaded


def tuned(text: str) -> Path | None:
    """The folder of tune's results, if the text is a path into one."""
    path = Path(text).expanduser()
    if not os.path.exists(path):
        return None
    return path if path.is_dir() else path.parent


def recipes_of(text: str) -> tuple[Recipe | str, ...]:
    """The recipes of a file of tune, or the text itself."""
    if tuned(text) is None:
        if "/" in text.partition(":")[0] or text.endswith(".json"):
            raise PruneError(f"no file or folder {text}; a recipe is written name:key=value, as in evit:keep=0.7")
        return (text,)
    from ..tune.result import load_recipes

    return load_recipes(text)
