"""make_app(loaded, variants, limits) -> the web application: /predict, /embed, /health, /metrics, and /docs, which describes them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..errors import shown
from ..load.models import Loaded
from .batching import Batcher
from .metrics import Metrics
from .refusal import GONE, Refusal
from .settings import Limits
from .uploads import read_upload, to_tensor
from .variants import Answer, Variant, choose

Found = TypeVar("Found")

DECODERS = 2
"""Threads that decode images."""


@dataclass(frozen=True)
class Tokens:
    """grid: patches in rows and columns; left: tokens after each pruned block; kept: patches that are left in the end, row by row from 0."""

    grid: tuple[int, int]
    left: list[int]
    kept: list[int]


@dataclass(frozen=True)
class Class:
    index: int
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """classes: the most probable first."""

    recipe: str
    classes: list[Class]
    tokens: Tokens


@dataclass(frozen=True)
class Embedding:
    """embedding: the pooled features, which enter the classifier."""

    recipe: str
    embedding: list[float]
    tokens: Tokens


@dataclass(frozen=True)
class Health:
    """recipes: what a request may ask for, the first by default; active: requests under way."""

    status: str
    model: str
    engine: str
    recipes: list[str]
    active: int
    version: str


@dataclass(frozen=True)
class Problem:
    """error: one line; served: the recipes that there are, where another was asked for."""

    error: str
    served: list[str] | None = None


PICTURE = {
    "requestBody": {
        "required": True,
        "description": "One image: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF ...",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}},
        },
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "No readable image, or a recipe that is not served."},
    408: {"model": Problem, "description": "The upload took too long."},
    413: {"model": Problem, "description": "The upload is too large."},
    500: {"model": Problem, "description": "The forward failed."},
    503: {"model": Problem, "description": "Too many requests are under way; try again."},
    504: {"model": Problem, "description": "The answer took too long."},
}

Recipe = Annotated[str | None, Query(description="One of the recipes that /health lists. By default the first.")]
Keep = Annotated[float | None, Query(description="The same by its kept fraction; 1 is the unpruned model.")]
Top = Annotated[int, Query(description="So many classes.", ge=1, le=100_000)]


class Desk:
    """Takes requests: reads and decodes their images, has them answered, counts. Holds nothing of a request after its answer."""

    def __init__(self, loaded: Loaded, variants: Sequence[Variant], limits: Limits, threads: int) -> None:
        self.loaded, self.variants, self.limits = loaded, variants, limits
        self.metrics = Metrics()
        runs = {variant.name: variant for variant in variants}
        self.batcher = Batcher(runs, limits.batch_size, limits.max_wait, threads, self.metrics.note_forward)
        self.metrics.watch(self.batcher)
        self.decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self.active = 0
        self.metrics.active.set_function(lambda: self.active)

    @asynccontextmanager
    async def open(self, _app: FastAPI) -> AsyncIterator[None]:
        """While the server runs; requests under way at its end have been answered."""
        work = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            self.batcher.close()
            self.decoders.shutdown()

    async def answer(self, request: Request, endpoint: str, recipe: str | None, keep: float | None) -> tuple[Variant, Answer]:
        """What the variant that was asked for says about the image that was sent. Raises Refusal."""
        start, status, name = time.perf_counter(), 500, ""
        self.active += 1
        try:
            if self.active > self.limits.queue:
                raise Refusal(503, f"{self.limits.queue} requests are under way; try again later", headers={"Retry-After": "1"})
            variant = choose(self.variants, recipe, keep)
            name = variant.name
            content = await self.upload(request)
            found = await attended(request, self.ask(variant, content), self.limits.timeout)
            status = 200
            return variant, found
        except ClientDisconnect:
            status = GONE
            raise Refusal(GONE, "the client has hung up") from None
        except (Refusal, HTTPException) as refusal:
            status = refusal.status if isinstance(refusal, Refusal) else refusal.status_code
            raise
        finally:
            self.active -= 1
            self.metrics.note_request(endpoint, name, status, time.perf_counter() - start)

    async def upload(self, request: Request) -> bytes:
        """The bytes of the image."""
        try:
            return await asyncio.wait_for(read_upload(request, int(self.limits.max_upload)), self.limits.timeout)
        except asyncio.TimeoutError:
            raise Refusal(408, f"the upload took longer than {self.limits.timeout:g} s") from None

    async def ask(self, variant: Variant, content: bytes) -> Answer:
        """Decode the image, and have it answered."""
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self.decoders, to_tensor, content, self.loaded.transform, int(self.limits.max_pixels))
        return await self.batcher.ask(variant.name, image)


async def attended(request: Request, work: Awaitable[Found], seconds: float) -> Found:
    """What the work finds, unless it takes longer (Refusal 504) or the client hangs up meanwhile (ClientDisconnect): then it is cancelled.

    The body must have been read: what the client sends from now on is only that it has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(hung_up(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise Refusal(504, f"no answer within {seconds:g} s")
    finally:
        task.cancel()
        gone.cancel()


async def hung_up(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def tokens_of(variant: Variant, answer: Answer) -> Tokens:
    return Tokens(variant.grid, answer.left, answer.kept)


def make_app(loaded: Loaded, variants: Sequence[Variant], engine: str, limits: Limits, threads: int = 0) -> FastAPI:
    """The application, which answers for the variants until it is shut down."""
    desk = Desk(loaded, variants, limits, threads)
    app = FastAPIOffline(
        title=f"Sparsight: {loaded.name}",
        version=__version__,
        description=f"{loaded.name} in {engine}, under {' | '.join(variant.name for variant in variants)}.",
        lifespan=desk.open,
        redoc_url=None,
    )
    add_answers(app, desk)
    add_state(app, desk, engine)
    add_problems(app)
    return app


def add_answers(app: FastAPI, desk: Desk) -> None:
    """The endpoints that take an image."""

    @app.post("/predict", responses=PROBLEMS, openapi_extra=PICTURE)
    async def predict(request: Request, recipe: Recipe = None, keep: Keep = None, top: Top = 5) -> Prediction:
        """The classes of an image with their probabilities, and the tokens that were kept."""
        variant, answer = await desk.answer(request, "/predict", recipe, keep)
        if answer.probabilities is None:
            raise Refusal(400, f"{desk.loaded.name} has no classifier; ask /embed")
        best = answer.probabilities.topk(min(top, len(answer.probabilities)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if not all(map(math.isfinite, best.values.tolist())):
            raise Refusal(500, "the model makes no finite numbers of this image")
        names = desk.loaded.classes
        classes = [Class(index, names[index] if names else None, value) for index, value in found]
        return Prediction(variant.name, classes, tokens_of(variant, answer))

    @app.post("/embed", responses=PROBLEMS, openapi_extra=PICTURE)
    async def embed(request: Request, recipe: Recipe = None, keep: Keep = None) -> Embedding:
        """The pooled features of an image, which enter the classifier, and the tokens that were kept."""
        variant, answer = await desk.answer(request, "/embed", recipe, keep)
        features = answer.features.tolist()
        if not all(map(math.isfinite, features)):
            raise Refusal(500, "the model makes no finite numbers of this image")
        return Embedding(variant.name, features, tokens_of(variant, answer))


def add_state(app: FastAPI, desk: Desk, engine: str) -> None:
    """The endpoints about the server itself."""

    @app.get("/health")
    async def health() -> Health:
        """That the server answers, and what it serves."""
        names = [variant.name for variant in desk.variants]
        return Health("ok", desk.loaded.name, engine, names, desk.active, __version__)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(desk.metrics.text(), media_type=desk.metrics.content_type)


def add_problems(app: FastAPI) -> None:
    """Every error as JSON with one line under `error`."""

    @app.exception_handler(Refusal)
    async def refused(_request: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse({"error": refusal.text, **refusal.more}, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {shown(request.url.path)}: {error.detail}"
        return JSONResponse({"error": text}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}={shown(first.get('input'))}: {first['msg']}"}, 400)

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500)
