"""make_page(desk) -> the web application: one page, its scripts, the samples, and the answers that it asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from starlette.datastructures import Headers, MutableHeaders

from .. import __version__
from ..look.overlay import HEAT
from ..look.patches import FUSED, GROUPS
from ..serve.app import add_problems
from ..serve.refusal import Refusal
from .desk import Desk, described, sample_of
from .language import FIRST, LONGEST, NO_QUESTION
from .samples import FIRST_SCENE, photos, scenes
from .vision import TOP

HERE = Path(__file__).parent
FILES = {
    "app.css": "text/css", "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        ("page.js", "elements.js", "methods.js", "sources.js", "painting.js", "stage.js", "tab.js", "vision.js", "language.js"), "text/javascript"
    ),
}  # fmt: skip
"""What may be read besides the page itself."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every answer. The browser itself keeps the page from asking any other host for anything."""
LOCAL = {"localhost", "127.0.0.1", "::1"}
MOST_RECIPES = 2

Name = Annotated[str, Query(max_length=200)]
Recipes = Annotated[list[str] | None, Query(max_length=MOST_RECIPES)]


def make_page(desk: Desk, local: bool = True) -> Guard:
    """The application. local: it is for this machine, so that names of other hosts in a request are refused."""

    @asynccontextmanager
    async def open_desk(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            desk.close()

    app = FastAPI(title="Sparsight", version=__version__, lifespan=open_desk, docs_url=None, redoc_url=None, openapi_url=None)
    add_files(app)
    add_descriptions(app, desk)
    add_answers(app, desk)
    add_problems(app)
    return Guard(app, local)


def add_files(app: FastAPI) -> None:
    """The page with its parts, and the samples."""

    @app.get("/")
    async def page() -> Response:
        return FileResponse(HERE / "index.html", media_type="text/html")

    @app.get("/parts/{name}")
    async def part(name: str) -> Response:
        if name not in FILES:
            raise Refusal(404, "no such part of the page")
        return FileResponse(HERE / name, media_type=FILES[name])

    @app.get("/samples/{kind}/{name}")
    def sample(kind: str, name: str) -> Response:
        return FileResponse(sample_of(kind, name).path, media_type="image/jpeg")


def add_descriptions(app: FastAPI, desk: Desk) -> None:
    """What there is to choose from."""

    @app.get("/vision")
    async def vision(request: Request) -> Response:
        """Models with their methods, samples, colours and limits."""

        def describe() -> dict[str, Any]:
            models = [
                {
                    "name": one.name,
                    "depth": len(one.family.blocks),
                    "grid": one.family.grid,
                    "first": one.first,
                    "methods": list(map(asdict, one.cards())),
                }
                for one in desk.visions.values()
            ]
            colours = {"fused": colour(FUSED), "groups": list(map(colour, GROUPS)), "heat": list(map(colour, HEAT))}
            limits = {"bytes": int(desk.limits.max_upload), "pixels": int(desk.limits.max_pixels)}
            samples = list(map(described, photos().values()))
            return {
                "version": __version__, "models": models, "samples": samples, "colours": colours, "limits": limits, "top": TOP
            }  # fmt: skip

        return JSONResponse(await desk.describe(request, describe))

    @app.get("/language")
    async def language(request: Request) -> Response:
        """The vision-language model, which is loaded now if it was not, with its methods and samples."""

        def describe() -> dict[str, Any]:
            model = desk.language()
            return {
                "name": model.name, "depth": model.depth, "grid": model.grid, "first": FIRST, "sample": FIRST_SCENE, "longest": LONGEST,
                "words": model.words(), "methods": list(map(asdict, model.cards())), "samples": list(map(described, scenes().values())),
            }  # fmt: skip

        return JSONResponse(await desk.describe(request, describe))


def add_answers(app: FastAPI, desk: Desk) -> None:
    """What is asked about a picture: a sample by its name, or the bytes of the request."""

    @app.post("/look")
    async def look(request: Request, model: Name, recipe: Recipes = None, sample: Name = "", file: Name = "PHOTO.jpg") -> Response:
        """Predictions, and what every site of every recipe left."""
        vision, chosen = desk.vision(model), sample_of("photos", sample) if sample else None
        path = str(chosen.path) if chosen else file

        def work(picture: Image.Image) -> dict[str, Any]:
            return asdict(vision.look(vision.loaded.transform(picture), recipe or [], path))

        return JSONResponse(await desk.answer(request, work, chosen))

    @app.post("/measure")
    async def measure(request: Request, model: Name, recipe: Recipes = None, sample: Name = "") -> Response:
        """Multiply-accumulates and milliseconds, unpruned and under every recipe."""
        vision, chosen = desk.vision(model), sample_of("photos", sample) if sample else None

        def work(picture: Image.Image) -> list[dict[str, Any]]:
            return list(map(asdict, vision.measure(vision.loaded.transform(picture), recipe or [])))

        return JSONResponse(await desk.answer(request, work, chosen))

    @app.post("/ask")
    async def ask(
        request: Request, question: Annotated[str, Query(max_length=10_000)], recipe: Recipes = None, sample: Name = ""
    ) -> Response:
        """Answers to a question, unpruned and under every recipe."""
        chosen = sample_of("scenes", sample) if sample else None
        if not question.strip():
            raise Refusal(400, NO_QUESTION)

        def work(picture: Image.Image) -> dict[str, Any]:
            return asdict(desk.language().ask(picture, question, recipe or []))

        return JSONResponse(await desk.answer(request, work, chosen))


def colour(rgb: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in rgb)


class Guard:
    """Middleware: headers on every answer; and other sites, which a browser on this machine may visit, cannot use the page."""

    def __init__(self, app: Any, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        why = self.refuse(Headers(scope=scope))
        await (JSONResponse({"error": why}, 403) if why else self.app)(scope, receive, answer)

    def refuse(self, headers: Headers) -> str:
        """Why a request gets no answer, empty if it does."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local and urlsplit(f"//{host}").hostname not in LOCAL:
            return "this page is for this machine only; start it with --host for others"
        if origin is not None and urlsplit(origin).netloc != host:
            return "another site may not use this page"
        return ""
