"""Options that several verbs share, and how what is given is read: the model, lists, numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

Word = Annotated[str | None, typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)]
Vision = Annotated[
    str | None, typer.Option("--model", help="demo, a timm name, hf_hub:REPO, a folder, or ARCH@FILE.safetensors. [default: demo]")
]
Language = Annotated[
    str | None, typer.Option("--model", help="Folder of a vision-language model, or OWNER/NAME on the Hugging Face Hub.")
]

Recipes = Annotated[list[str] | None, typer.Option(help="A recipe such as evit:keep=0.7; may be given several times.")]
LanguageRecipes = Annotated[list[str] | None, typer.Option(help="Recipe such as vispruner:tokens=64; may be given several times.")]
DataSet = Annotated[str | None, typer.Option(help="A folder, a saved data set, Parquet, hf:NAME[@CONFIG][:SPLIT], or demo:small.")]
Split = Annotated[str | None, typer.Option(help="Folder or split of the data set.")]
Limit = Annotated[int | None, typer.Option(help="Use only so many images, spread over the classes.")]
BatchSize = Annotated[int, typer.Option(help="Images per forward.")]
Workers = Annotated[int, typer.Option(help="Processes that read images; 0 reads in threads.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Baselines = Annotated[
    str, typer.Option(help="Baselines beside the recipes, joined by commas: random, resize (a smaller picture), pool. '' for none.")
]
Equal = Annotated[str, typer.Option(help="What resize and pool share with the recipes: macs, tokens, or both joined by a comma.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]

Number = TypeVar("Number", int, float)


def one_model(word: str | None, option: str | None, default: str | None = "demo") -> str:
    if word is not None and option is not None and word != option:
        raise typer.BadParameter(f"two models are given, {word} and {option}; give one")
    found = word or option or default
    if found is None:
        raise typer.BadParameter("no model is given; name one with --model")
    return found


def items(text: str) -> list[str]:
    """Parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, kind: Callable[[str], Number], option: str) -> list[Number]:
    """Numbers between commas."""
    try:
        return [kind(item) for item in items(text)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{text!r} is no list of {what}, such as 1,4", param_hint=option) from None


def split(text: str) -> list[str]:
    """Recipes between commas; a part key=value without a name belongs to the recipe before it."""
    found: list[str] = []
    for part in items(text):
        if found and re.fullmatch(r"\w+\s*=.*", part):
            found[-1] += ("," if ":" in found[-1] else ":") + part
        else:
            found.append(part)
    return found
