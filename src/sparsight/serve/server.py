"""serve(model, recipes, ...): answer HTTP requests about images until told to stop."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from ..errors import PruneError, shown
from ..load.models import Loaded, open_model
from ..recipe import Recipe
from ..runs.settings import Settings, check_settings
from ..speed.engines import need_module
from .settings import Limits

NEEDED = ("fastapi", "uvicorn", "fastapi_offline", "python_multipart", "prometheus_client")
DRAINED = 4
"""How many times the limit is read of an upload that is too long, so that its client, who writes before it reads, gets the answer."""
IDLE = 75
"""Seconds that a connection without a request stays open: longer than proxies reuse one, which are then never cut off in the act."""


def serve(
    model: str | Loaded | nn.Module = "demo",
    recipes: Sequence[str | Recipe] = (),
    *,
    engine: str = "eager",
    device: str = "cpu",
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int = 0,
    limits: Limits | None = None,
    listen: Callable[[str], object] | None = None,
) -> None:
    """Serve a vision model under the recipes, the first by default, and unpruned; until SIGTERM or Ctrl-C, when requests under way are
    answered first. No other recipes than these are ever run, whatever a request asks for.

    model: see `open_model`. engine: eager, onnxruntime or openvino. device: of engine eager. port 0: any that is free. threads: of a
    forward, 0 = as many as torch uses. listen: called with a word on what takes long, and with the address when it is ready. Raises
    PruneError, before anything is loaded where that can be, for a recipe, a model, an engine or an address that cannot be had.
    """
    from .variants import check_recipes, make_variants

    for name in NEEDED:
        need_module(name)
    wanted = check_recipes(recipes, engine)
    if engine != "eager" and device not in ("cpu", "auto"):
        raise PruneError(f"device={shown(device)!r} is for engine eager; {engine} runs on the CPU")
    device = check_settings(Settings(device=device if engine == "eager" else "cpu")).device
    limits = limits or Limits()
    say = listen or (lambda _text: None)
    with open_port(host, port) as listener:
        loaded = open_model(model, device=device)
        variants = make_variants(loaded, wanted, engine, threads, say)
        from .app import make_app

        server = make_server(make_app(loaded, variants, engine, limits, threads), limits)
        say(f"serving {loaded.name} on {address(listener)} (description: {address(listener)}/docs); Ctrl-C stops it")
        with suppress(KeyboardInterrupt):  # uvicorn sends itself the signal once more when it has shut down
            server.run(sockets=[listener])
        say("stopped" if server.force_exit else "stopped; every request under way was answered")


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket. From now on clients wait instead of being turned away. Raises PruneError if the address cannot be had."""
    if not 0 <= port <= 65535:
        raise PruneError(f"port={port} must be between 0 and 65535")
    listener = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        why = getattr(error, "strerror", None) or str(error)
        raise PruneError(f"cannot listen on port {port} of {shown(host)} ({why}); give another --port or --host") from None
    return listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(app: Any, limits: Limits) -> Any:
    """uvicorn with the application; `run(sockets=[listener])` answers until `should_exit` is set or a signal comes."""
    import uvicorn

    from .uploads import ReadToTheEnd

    whole = ReadToTheEnd(app, int(DRAINED * limits.max_upload), limits.timeout)
    settings = uvicorn.Config(
        whole, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=round(2 * limits.timeout) + 1,
    )  # fmt: skip
    return uvicorn.Server(settings)
