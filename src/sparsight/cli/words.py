"""Words that several verbs share: the model, by its short way or by its name."""

from __future__ import annotations

from typing import Annotated

import typer

Word = Annotated[str | None, typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)]
Vision = Annotated[
    str | None, typer.Option("--model", help="demo, a timm name, hf_hub:REPO, a folder, or ARCH@FILE.safetensors. [default: demo]")
]
Language = Annotated[
    str | None, typer.Option("--model", help="Folder of a vision-language model, or OWNER/NAME on the Hugging Face Hub.")
]


def one_model(word: str | None, option: str | None, default: str | None = "demo") -> str:
    """The model, given as a word or by --model."""
    if word is not None and option is not None and word != option:
        raise typer.BadParameter(f"two models are given, {word} and {option}; give one")
    found = word or option or default
    if found is None:
        raise typer.BadParameter("no model is given; name one with --model")
    return found
