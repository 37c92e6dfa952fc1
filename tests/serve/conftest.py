"""Fixtures of the server's tests."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loopback import Client, Gate, make_vit, running

from sparsight.load.models import Loaded

pytest.importorskip("fastapi", reason="needs the extra serve")


@pytest.fixture(scope="module")
def vit() -> Loaded:
    return make_vit()


@pytest.fixture(scope="module")
def client(vit: Loaded) -> Iterator[Client]:
    with running(vit, max_upload=300_000, max_pixels=1_000_000) as found:
        yield found


@pytest.fixture
def gated() -> tuple[Loaded, Gate]:
    """A model whose forwards can be held up."""
    loaded = make_vit()
    return loaded, Gate(loaded)


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """Run functions in threads at once: what they return, or the exception, in order."""

    def run(*jobs: Callable[[], Any]) -> list[Any]:
        found: list[Any] = [None] * len(jobs)

        def work(number: int) -> None:
            try:
                found[number] = jobs[number]()
            except Exception as error:
                found[number] = error

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found

    return run
