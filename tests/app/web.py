"""The page on a loopback port of this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loopback import Client
from tiny_demo import make_model, make_processor

from sparsight.load.models import Loaded
from sparsight.load.vlms import LoadedVlm


def tiny_language() -> LoadedVlm:
    return LoadedVlm("tiny-vlm", make_model(), make_processor())


@contextmanager
def page(loaded: Loaded, language: Callable[[], LoadedVlm] = tiny_language, **limits: Any) -> Iterator[Client]:
    """The page, stopped in the end."""
    from sparsight.app.desk import Desk
    from sparsight.app.vision import Vision
    from sparsight.app.web import make_page
    from sparsight.serve.server import make_server, open_port
    from sparsight.serve.settings import Limits

    given = Limits(**limits)
    desk = Desk([Vision(loaded)], given, threads=1, language=language)
    with open_port("127.0.0.1", 0) as listener:
        server = make_server(make_page(desk), given)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(listener.getsockname()[1], desk)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
