"""The picture of a request: raw or multipart, never more bytes or pixels than are allowed, decoded as every verb does it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from torch import Tensor

from ..data.reading import Transform, decode, reason
from .refusal import Refusal

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(eq=False)
class Body:
    """The messages of a request's body, counted. Raises Refusal 413 as soon as there are more bytes than `most`."""

    receive: Receive = field(repr=False)
    most: float = float("inf")
    got: int = 0
    ended: bool = False

    async def __call__(self) -> Any:
        message = await self.receive()
        self.got += len(message.get("body", b""))
        self.ended = not message.get("more_body")
        if self.got > self.most:
            raise too_long(self.most)
        return message

    async def drain(self, most: int) -> None:
        """Read what is left, up to `most` bytes in all."""
        while not self.ended and self.got <= most:
            await self()


class ReadToTheEnd:
    """Middleware: what is left of a body is read before the answer goes out, up to `most` bytes and for `seconds`.

    A server that answers and closes while its client is still writing resets the connection, and the client never sees the answer.
    Clients that wait to be asked for the body (Expect: 100-continue) are not asked.
    """

    def __init__(self, app: Any, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or not headers.keys() & {b"content-length", b"transfer-encoding"} or b"expect" in headers:
            await self.app(scope, receive, send)
            return
        body = Body(receive)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(body.drain(self.most), self.seconds)
            await send(message)

        await self.app(scope, body, answer)


def too_long(most: float) -> Refusal:
    return Refusal(413, f"the upload has more than the {most:.0f} bytes that are allowed")


async def read_upload(request: Request, most: int) -> bytes:
    """The bytes of the one file in a multipart form, else those of the body. Raises Refusal for none, several or more than `most`."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > most and "expect" in request.headers:
        raise too_long(most)  # this client waits for a word before it sends anything
    limited = Request(request.scope, Body(request.receive, most))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await read_form(limited) if kind == "multipart/form-data" else await limited.body()
    if not content:
        raise Refusal(400, "no image was sent; send its bytes as the body, or as a file of a multipart form")
    return content


async def read_form(request: Request) -> bytes:
    """The bytes of the only file of a multipart form. A form that cannot be read is starlette's HTTPException 400."""
    async with request.form(max_files=1, max_fields=16) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise Refusal(400, "the form has no file; send the image as one, as in curl -F image=@PHOTO.jpg")
        return await files[0].read()


def to_picture(content: bytes, pixels: int) -> Image.Image:
    """The image. Raises Refusal 400 for what is no image or has more pixels than `pixels`."""
    try:
        return decode(io.BytesIO(content), pixels)
    except Exception as error:  # Pillow's decoders raise whatever their format meets
        raise Refusal(400, f"the image cannot be read: {reason(error)}") from None


def to_tensor(content: bytes, transform: Transform, pixels: int) -> Tensor:
    """The image [3, H, W] as the model takes it. Raises Refusal as `to_picture` does."""
    return transform(to_picture(content, pixels))
