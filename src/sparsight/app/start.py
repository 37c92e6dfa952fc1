"""start(model, ...): show the page until told to stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ..errors import PruneError
from ..load.models import Loaded, open_model
from ..load.vlms import speaks
from ..runs.settings import Settings, check_settings
from ..serve.server import NEEDED, address, make_server, open_port
from ..speed.engines import need_module


def start(
    model: str | Loaded | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "cpu",
    threads: int = 0,
    listen: Callable[[str], object] | None = None,
) -> None:
    """Show the page for the demo models and one more vision model, until SIGTERM or Ctrl-C.

    port 0: any that is free. threads: of a forward, 0 = as many as torch uses. listen: called with a word on what takes long, and with
    the address when the page is there. Raises PruneError for a model or an address that cannot be had.
    """
    for name in NEEDED:
        need_module(name)
    if isinstance(model, str) and model != "demo-vlm" and speaks(model):
        raise PruneError(
            f"{model} is a vision-language model; the page takes a vision model here, and asks demo-vlm in its second tab"
        )
    device = check_settings(Settings(device=device)).device
    say = listen or (lambda _text: None)
    with open_port(host, port) as listener:
        from .desk import LIMITS, Desk
        from .vision import Vision
        from .web import LOCAL, make_page

        say("loading the model ...")
        names: list[str | Loaded] = ["demo"] if model in (None, "demo") else [model, "demo"]
        visions = [Vision(open_model(name, device=device)) for name in names]
        server = make_server(make_page(Desk(visions, LIMITS, threads), host in LOCAL), LIMITS)
        say(f"the page is at {address(listener)}; Ctrl-C stops it")
        with suppress(KeyboardInterrupt):  # uvicorn sends itself the signal once more when it has shut down
            server.run(sockets=[listener])
        say("stopped")
