"""A tiny model, pictures, and a server on a loopback port of this process, for the server's tests."""

import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from PIL import Image

from sparsight.load.models import Loaded, timm_transform

SIDE = 64
RECIPES = ("col_ln:keep=0.5,layers=0/1", "evit:keep=0.7,layers=1", "tome:remove=3,layers=0/1")
NAMES = ["cat", "dog", "owl", "emu", "ibis"]


def make_vit() -> Loaded:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": len(NAMES)}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    return Loaded("tiny", model, timm_transform(model), NAMES, (SIDE, SIDE))


def picture(number: int, kind: str = "PNG") -> bytes:
    """A smooth random picture as a file."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.rand(6, 6, 3, generator=generator).mul(255).byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).resize((90, 80)).save(file, kind)
    return file.getvalue()


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of a hundred kilobytes that is 900 million pixels large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + width // 8) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def form(content: bytes, field: str = "image", files: int = 1) -> tuple[bytes, dict[str, str]]:
    """A multipart body with its header."""
    part = f'--xx\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'.encode() + content + b"\r\n"
    return part * files + b"--xx--\r\n", {"Content-Type": "multipart/form-data; boundary=xx"}


@dataclass(eq=False)
class Client:
    """Requests to a server on the loopback."""

    port: int
    server: Any = None

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None) -> tuple[int, Any]:
        """Status and JSON (or text) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return answer.status, json.loads(text) if answer.headers["Content-Type"] == "application/json" else text
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """A number of /metrics, summed over what is not asked for."""
        found = 0.0
        for line in self.ask("/metrics")[1].splitlines():
            if line.partition("{")[0].partition(" ")[0] == name and all(
                f'{key}="{value}"' in line for key, value in labels.items()
            ):
                found += float(line.rpartition(" ")[2])
        return found

    def until(self, name: str, value: float, **labels: str) -> None:
        """Wait for a number of /metrics."""
        end = time.monotonic() + 30
        while self.metric(name, **labels) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name, **labels)}, not {value}"
            time.sleep(0.01)


@contextmanager
def running(loaded: Loaded, recipes: tuple[str, ...] = RECIPES, engine: str = "eager", **limits: Any) -> Iterator[Client]:
    """A server in a thread of this process, stopped in the end."""
    from sparsight.serve.app import make_app
    from sparsight.serve.server import make_server, open_port
    from sparsight.serve.settings import Limits
    from sparsight.serve.variants import check_recipes, make_variants

    given = Limits(**limits)
    variants = make_variants(loaded, check_recipes(recipes, engine), engine, threads=1)
    with open_port("127.0.0.1", 0) as listener:
        server = make_server(make_app(loaded, variants, engine, given, threads=1), given)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(listener.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


class Gate:
    """Holds a model's forwards until it is opened."""

    def __init__(self, loaded: Loaded) -> None:
        self.door, self.arrived = threading.Event(), threading.Semaphore(0)
        self.armed = False
        loaded.model.register_forward_pre_hook(self.pass_through)

    def pass_through(self, _model: Any, _given: Any) -> None:
        if self.armed:
            self.arrived.release()
            assert self.door.wait(30)

    def __deepcopy__(self, _memo: Any) -> "Gate":
        return self
