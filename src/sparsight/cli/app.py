"""sparsight app: a web page to try methods on pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from .words import Device, Vision, Word


def app(
    word: Word = None,
    model: Vision = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 7860,
    threads: Annotated[int, typer.Option(help="Threads of a forward; 0 takes as many as torch does.", min=0)] = 0,
    device: Device = "auto",
) -> None:
    """A web page to try methods on pictures: kept patches, predictions and costs side by side, and questions to a language model.

    It works without a network, and keeps no picture. Ctrl-C stops it.

    \b
    Examples:
      sparsight app
      sparsight app vit_small_patch16_224 --port 8080
    """
    from ..app.start import start
    from .words import one_model

    def say(text: str) -> None:
        typer.echo(text, err=True)

    start(one_model(word, model), host=host, port=port, device=device, threads=threads, listen=say)
