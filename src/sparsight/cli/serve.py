"""sparsight serve: a vision model as an HTTP service."""

from __future__ import annotations

from typing import Annotated

import typer

from .words import Device, Vision, Word, one_model


def serve(
    word: Word = None,
    model: Vision = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="Recipe that requests may ask for; give it several times, the first is the default. [default: unpruned]"),
    ] = None,
    engine: Annotated[str, typer.Option(help="eager, onnxruntime or openvino.")] = "eager",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 8000,
    batch_size: Annotated[int, typer.Option(help="Images of a forward at most.")] = 16,
    max_wait: Annotated[float, typer.Option(help="Milliseconds that an image waits for others.")] = 5,
    queue: Annotated[int, typer.Option(help="Requests under way at most; more get 503.")] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds for an upload, and again for its answer.")] = 30,
    max_upload: Annotated[float, typer.Option(help="MiB of an upload at most.")] = 16,
    max_pixels: Annotated[float, typer.Option(help="Millions of pixels of an image at most.")] = 50,
    threads: Annotated[int, typer.Option(help="Threads of a forward; 0 takes as many as torch does.", min=0)] = 0,
    device: Device = "auto",
) -> None:
    """Answer HTTP requests about images: classes, embeddings, kept tokens. Every request chooses one of the recipes, or none.

    SIGTERM and Ctrl-C let requests under way be answered first.

    \b
    Examples:
      sparsight serve demo --recipe col_ln:keep=0.7,layers=3/6/9 --recipe col_ln:keep=0.5,layers=3/6/9 --engine openvino
      curl --data-binary @PHOTO.jpg 'http://127.0.0.1:8000/predict?keep=0.5'
      curl -F image=@PHOTO.jpg http://127.0.0.1:8000/embed
    """
    from ..serve.server import serve as run
    from ..serve.settings import Limits

    def say(text: str) -> None:
        typer.echo(text, err=True)

    limits = Limits(
        batch_size=batch_size, max_wait=max_wait / 1000, queue=queue, timeout=timeout,
        max_upload=max_upload * 2**20, max_pixels=max_pixels * 1e6,
    )  # fmt: skip
    run(
        one_model(word, model), recipe or (), engine=engine, device=device, host=host, port=port, threads=threads, limits=limits,
        listen=say,
    )  # fmt: skip
