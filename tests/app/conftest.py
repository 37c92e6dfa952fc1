"""Fixtures of the page's tests: the page on a loopback port, with a tiny vision model and a tiny vision-language model."""

from collections.abc import Iterator

import pytest
from loopback import Client, make_vit
from web import page

pytest.importorskip("fastapi", reason="needs the extra app")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with page(make_vit(), max_upload=300_000, max_pixels=1_000_000) as found:
        yield found
