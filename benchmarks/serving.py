"""A pruned vLLM server beside the unpruned one: requests per second and time to first token at 1 to 32 requests at once.

    python benchmarks/serving.py llava-hf/llava-1.5-7b-hf --recipe fastervlm:tokens=64 --recipe visionzip:tokens=64 --out FILE.json

Each server runs alone, as a process of its own on a port of 127.0.0.1; "none" is vLLM as it is, without the plug-in's key. Every request brings
a picture that no cache knows (noise over a gradient), one question, and asks for --new tokens. What follows "--" goes to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

UNPRUNED = "none"
QUESTION = "Describe this picture in detail."
PATIENCE = 3600
"""Seconds in which a server has to answer, and a request to end."""


@dataclass(frozen=True)
class Answered:
    """Seconds to the first token and to the last, tokens of the prompt and of the answer."""

    first: float
    last: float
    prompt: int
    new: int


@dataclass(frozen=True)
class Row:
    """One server at one concurrency. Seconds are medians, `first_p95` is the 95th of a hundred."""

    recipe: str
    concurrency: int
    requests: int
    per_second: float
    first: float
    first_p95: float
    tokens_per_second: float
    prompt: int


def picture(seed: int, side: int) -> str:
    """A picture as a data URL."""
    noise = np.random.default_rng(seed).integers(0, 64, (side, side, 3))
    slope = np.linspace(0, 190, side)[:, None, None]
    buffer = io.BytesIO()
    Image.fromarray((noise + slope).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def body(model: str, seed: int, side: int, new: int) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": {"url": picture(seed, side)}}, {"type": "text", "text": QUESTION}]
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "temperature": 0,
        "max_tokens": new,
        "ignore_eos": True,
    }
    return {**asked, "stream": True, "stream_options": {"include_usage": True}}


@contextmanager
def server(model: str, recipe: str, options: list[str]) -> Iterator[str]:
    """The address of a server, which stops in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "model"]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    command += [] if recipe == UNPRUNED else ["--hf-overrides", json.dumps({"sparsight": recipe})]
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"})
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the server answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit("the server ended before it answered; its last words are above")
        try:
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SystemExit(f"the server gave no answer within {PATIENCE} seconds")


async def ask(client: httpx.AsyncClient, asked: dict[str, object]) -> Answered:
    """Send a request and read its answer as it comes."""
    start, first, usage = time.perf_counter(), 0.0, {}
    async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"HTTP {answer.status_code}: {(await answer.aread()).decode()[:300]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            usage = event.get("usage") or usage
            if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - start
    last = time.perf_counter() - start
    return Answered(first or last, last, int(usage["prompt_tokens"]), int(usage["completion_tokens"]))


async def at_once(address: str, bodies: list[dict[str, object]], concurrency: int) -> tuple[float, list[Answered]]:
    """Seconds for all requests, so many under way at any time, and what became of each."""
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:

        async def one(asked: dict[str, object]) -> Answered:
            async with gate:
                return await ask(client, asked)

        start = time.perf_counter()
        answered = await asyncio.gather(*map(one, bodies))
    return time.perf_counter() - start, answered


def measure(address: str, recipe: str, given: argparse.Namespace) -> list[Row]:
    """Rows of one server. Pictures are the same for every server, and new ones for every concurrency."""
    if given.warm:
        asyncio.run(at_once(address, [body("model", seed, given.side, given.new) for seed in range(8)], 4))
    rows = []
    for concurrency in given.concurrency:
        count = max(given.requests, 2 * concurrency)
        bodies = [body("model", 1000 * concurrency + seed, given.side, given.new) for seed in range(count)]
        seconds, answered = asyncio.run(at_once(address, bodies, concurrency))
        firsts = sorted(one.first for one in answered)
        new = sum(one.new for one in answered)
        rows.append(
            Row(
                recipe, concurrency, count, count / seconds, statistics.median(firsts), firsts[int(0.95 * (count - 1))], new / seconds,
                answered[0].prompt,
            )
        )  # fmt: skip
        print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    return (
        f"{row.recipe:32} {row.concurrency:3} at once  {row.per_second:7.2f} requests/s  first token {1000 * row.first:7.0f} ms "
        f"(p95 {1000 * row.first_p95:.0f})  {row.prompt} tokens in the prompt"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--requests", type=int, default=64, help="of each concurrency, at least two for each client")
    parser.add_argument("--side", type=int, default=672, help="pixels")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--warm", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    given, options = parser.parse_args(own), sys.argv[len(own) + 2 :]
    rows: list[Row] = []
    for recipe in [UNPRUNED, *given.recipe]:
        with server(given.model, recipe, options) as address:
            rows += measure(address, recipe, given)
    if given.out is not None:
        where = {"machine": platform.machine(), "cpus": os.cpu_count(), "options": options}
        given.out.write_text(json.dumps({"model": given.model, **where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
