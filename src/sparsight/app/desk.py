"""Desk: takes the requests of all users of the page, and has the models answer them one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image
from starlette.requests import ClientDisconnect, Request

from ..errors import PruneError, shown
from ..load.vlms import LoadedVlm, load_vlm
from ..serve.app import attended
from ..serve.refusal import GONE, Refusal
from ..serve.settings import Limits
from ..serve.uploads import Body, to_picture
from .language import Language
from .samples import Sample, photos, scenes
from .vision import Vision

Found = TypeVar("Found")

LIMITS = Limits(queue=32, timeout=30)
"""Requests under way, and seconds of an upload; of the pictures, as for `serve`."""
ANSWER = 180.0
"""Seconds for an answer, the wait for others included."""
DECODERS = 2
"""Threads that decode pictures."""


class Desk:
    """Holds the models, and nothing of a request after its answer. One thread runs the models, so a pruned one is seen by nobody else and
    what is timed has the machine to itself; whoever hangs up leaves the queue.

    language: makes the vision-language model when it is first asked for.
    """

    def __init__(
        self,
        visions: Sequence[Vision],
        limits: Limits = LIMITS,
        threads: int = 0,
        language: Callable[[], LoadedVlm] = load_vlm,
    ) -> None:
        self.visions = {vision.name: vision for vision in visions}
        self.limits = limits
        self.load_language = language
        self.found_language: Language | None = None
        prepare = (lambda: torch.set_num_threads(threads)) if threads else None
        self.models = ThreadPoolExecutor(1, "models", initializer=prepare)
        self.decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self.active = 0

    def close(self) -> None:
        """Wait for what is running; what waits is dropped."""
        self.models.shutdown(cancel_futures=True)
        self.decoders.shutdown(cancel_futures=True)

    def vision(self, name: str) -> Vision:
        if name not in self.visions:
            raise Refusal(400, f"no model {shown(name)} here; this page has {', '.join(self.visions)}")
        return self.visions[name]

    def language(self) -> Language:
        """The vision-language model; in the models' thread. Raises PruneError where transformers is not installed."""
        if self.found_language is None:
            self.found_language = Language(self.load_language())
        return self.found_language

    async def describe(self, request: Request, work: Callable[[], Found]) -> Found:
        """What the work finds, without a picture. Raises Refusal."""
        return await self.serve(request, lambda _content: self.in_turn(work))

    async def answer(self, request: Request, work: Callable[[Image.Image], Found], sample: Sample | None = None) -> Found:
        """What the work makes of the picture that was sent, or of the sample. Raises Refusal."""
        return await self.serve(request, lambda content: self.on_picture(work, content, sample))

    async def serve(self, request: Request, job: Callable[[bytes], Awaitable[Found]]) -> Found:
        """What the job makes of the request's body, unless too many are under way, it takes too long or the client hangs up."""
        self.active += 1
        try:
            if self.active > self.limits.queue:
                raise Refusal(
                    503, f"{self.limits.queue} requests are under way; try again in a moment", headers={"Retry-After": "1"}
                )
            content = await self.upload(request)
            return await attended(request, job(content), ANSWER)
        except ClientDisconnect:
            raise Refusal(GONE, "the client has hung up") from None
        except PruneError as error:
            raise Refusal(400, str(error)) from None
        finally:
            self.active -= 1

    async def upload(self, request: Request) -> bytes:
        """The bytes of the body, which never leave memory."""
        limited = Request(request.scope, Body(request.receive, self.limits.max_upload))
        try:
            return await asyncio.wait_for(limited.body(), self.limits.timeout)
        except asyncio.TimeoutError:
            raise Refusal(408, f"the upload took longer than {self.limits.timeout:g} s") from None

    async def on_picture(self, work: Callable[[Image.Image], Found], content: bytes, sample: Sample | None) -> Found:
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self.decoders, self.picture, content, sample)
        return await self.in_turn(partial(work, picture))

    async def in_turn(self, work: Callable[[], Found]) -> Found:
        """What the work finds in the models' thread, once it is its turn."""
        return await asyncio.get_running_loop().run_in_executor(self.models, work)

    def picture(self, content: bytes, sample: Sample | None) -> Image.Image:
        """The picture of a request."""
        if sample is not None:
            content = sample.path.read_bytes()
        if not content:
            raise PruneError("no picture was sent; choose a sample, or drop one on the page")
        return to_picture(content, int(self.limits.max_pixels))


def sample_of(kind: str, name: str) -> Sample:
    """A sample by name. Raises Refusal 404 for one that there is not."""
    known = {"photos": photos, "scenes": scenes}.get(kind)
    found = known().get(name) if known is not None else None
    if found is None:
        raise Refusal(404, f"no sample picture {shown(name)}")
    return found


def described(sample: Sample) -> dict[str, Any]:
    """A sample as the page hears of it."""
    return {
        "name": sample.name,
        "label": sample.label,
        "questions": [{"text": ask.text, "answer": ask.answer} for ask in sample.questions],
    }
