"""Desk: takes the requests of all users of the page, and has the models answer them one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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

    async def answer(self, request: Request, work: Callable[..., Found], sample: Sample | None = None) -> Found:
        """What the work makes of the picture that was sent, or of the sample; run in the models' thread. Raises Refusal."""
        self.active += 1
        try:
            if self.active > self.limits.queue:
                raise Refusal(
                    503, f"{self.limits.queue} requests are under way; try again in a moment", headers={"Retry-After": "1"}
                )
            content = await self.upload(request)
            return await attended(request, self.run(work, content, sample), ANSWER)
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

    async def run(self, work: Callable[..., Found], content: bytes, sample: Sample | None) -> Found:
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self.decoders, self.picture, content, sample)
        return await loop.run_in_executor(self.models, work, picture)

    def picture(self, content: bytes, sample: Sample | None) -> Image.Image | None:
        """The picture of a request, None for one without."""
        if sample is not None:
            content = sample.path.read_bytes()
        return to_picture(content, int(self.limits.max_pixels)) if content else None


def sample_of(kind: str, name: str) -> Sample:
    """A sample by name. Raises Refusal 404 for one that there is not."""
    known = {"photos": photos, "scenes": scenes}.get(kind)
    found = known().get(name) if known is not None else None
    if found is None:
        raise Refusal(404, f"no sample picture {shown(name)}")
    return found


def need(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        raise PruneError("no picture was sent; choose a sample, or drop one on the page")
    return picture


def described(sample: Sample) -> dict[str, Any]:
    """A sample as the page hears of it."""
    return {
        "name": sample.name,
        "label": sample.label,
        "questions": [{"text": ask.text, "answer": ask.answer} for ask in sample.questions],
    }
