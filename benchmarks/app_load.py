"""The web page under mixed requests from several clients: is any answer lost or wrong, does memory stay flat?

    python benchmarks/app_load.py --out benchmarks/results/app_load_cpu.json

`sparsight app` runs as a process of its own on a port of 127.0.0.1. Each kind of good request is made once alone, and every later answer to
it has to be the same. Then --requests requests come from --clients clients at once: pictures under one or two of several methods, costs,
questions, parts of the page; three in ten are bad: text, broken pictures, decompression bombs, uploads that are too long, recipes that cannot
be, clients that hang up. Memory is read before, half way and after.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from http_load import PATIENCE, Server, bomb, busy, crowd, hang_up, machine

from sparsight.load.models import demo_images

LIMIT = 16 * 2**20
"""Bytes of an upload that the page allows."""
RECIPES = (
    "col_ln:keep=0.5,layers=3/6/9", "evit:keep=0.7,layers=3/6/9", "tome", "ats", "random:keep=0.3,layers=input", "resize:keep=0.25",
)  # fmt: skip
ASKED = ("divprune:tokens=32", "fastervlm:tokens=32", "fastv:tokens=64", "vispruner:tokens=16")
NEAR = 1e-4
"""Largest difference between two answers to one request."""


@dataclass
class Tally:
    """What became of requests."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Ask:
    """One request: what it is, where it goes, its body (None: a GET) and the status that is due."""

    kind: str
    path: str
    body: bytes | None
    status: int = 200


def good() -> list[Ask]:
    """Every good request."""
    photos = {path.parent.name.lower(): path.read_bytes() for path in sorted(demo_images().rglob("*.jpg"))[:4]}
    found = [
        Ask("part", path, None)
        for path in ("/", "/parts/page.js", "/parts/app.css", "/samples/photos/okapi", "/vision", "/language")
    ]
    for recipe, other in zip(RECIPES, (*RECIPES[1:], RECIPES[0]), strict=True):
        for name, content in photos.items():
            found.append(Ask("look", "/look?" + urlencode([("model", "demo"), ("recipe", recipe)]), content))
            two = [("model", "demo"), ("recipe", recipe), ("recipe", other), ("sample", name)]
            found.append(Ask("look at two", "/look?" + urlencode(two), b""))
    for recipe in ASKED:
        for sample in ("0003", "0004"):
            words = [("question", "what is in the picture ?"), ("sample", sample), ("recipe", recipe)]
            found.append(Ask("ask", "/ask?" + urlencode(words), b""))
    found.append(Ask("measure", "/measure?" + urlencode([("model", "demo"), ("sample", "okapi"), ("recipe", RECIPES[0])]), b""))
    return found


def bad() -> list[Ask]:
    """Every bad request."""
    file = next(iter(sorted(demo_images().rglob("*.jpg")))).read_bytes()
    look, ask = "/look?" + urlencode([("model", "demo"), ("recipe", RECIPES[0])]), "/ask?question=what+is+it"
    found = []
    for path in (look, ask):
        found += [
            Ask("text", path, b"this is no image\n" * 50, 400), Ask("broken", path, file[: len(file) // 2], 400),
            Ask("bomb", path, bomb(10_000), 400), Ask("too long", path, bytes(LIMIT + 1), 413), Ask("nothing", path, b"", 400),
        ]  # fmt: skip
    found.append(Ask("no model", "/look?model=none", file, 400))
    found.append(Ask("no question", "/ask?question=", file, 400))
    return [
        *found,
        Ask("recipe", "/look?" + urlencode([("model", "demo"), ("recipe", "evit:kep=1")]), file),
        Ask("hang-up", look, file),
    ]


def send(port: int, ask: Ask) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET" if ask.body is None else "POST", ask.path, ask.body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def same(a: Any, b: Any) -> bool:
    """Whether two answers agree, numbers to rounding, all but the measured times."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(key in TIMED or same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return abs(a - b) < NEAR if isinstance(a, float) and isinstance(b, float) else a == b


TIMED = {"milliseconds", "low", "high", "speedup", "runs"}


def read(ask: Ask, content: bytes) -> Any:
    return json.loads(content) if ask.kind != "part" or content[:1] == b"{" else content.decode("latin-1")


class Crowd:
    """Clients that send requests of all kinds at once, and note what comes back."""

    def __init__(self, port: int, wanted: dict[Ask, Any]) -> None:
        self.port, self.wanted, self.tally = port, wanted, Tally()
        self.good, self.bad = list(wanted), bad()

    def one(self, choice: random.Random) -> None:
        kinds = sorted({ask.kind for ask in self.good})
        ask = choice.choice(self.bad) if choice.random() < 0.3 else None
        if ask is None:
            kind = choice.choices(kinds, [{"measure": 0.1, "part": 1.5}.get(kind, 1.0) for kind in kinds])[0]
            ask = choice.choice([ask for ask in self.good if ask.kind == kind])
        start = time.perf_counter()
        try:
            if ask.kind == "hang-up":
                assert ask.body is not None
                hang_up(self.port, ask.path, ask.body, choice)
                return self.note(ask, "hung up", start)
            status, content = send(self.port, ask)
            found = read(ask, content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            with self.tally.lock:
                self.tally.lost.append(f"{ask.kind}: {type(error).__name__} {error}")
            return None
        fine = status == ask.status and (same(found, self.wanted[ask]) if ask in self.wanted else told(ask, found))
        self.note(ask, str(status), start, "" if fine else f"{ask.kind}: {status} {content[:150]!r}")
        return None

    def note(self, ask: Ask, answer: str, start: float, wrong: str = "") -> None:
        with self.tally.lock:
            self.tally.answers[answer] += 1
            self.tally.seconds.setdefault(ask.kind, []).append(time.perf_counter() - start)
            if wrong:
                self.tally.wrong.append(wrong)

    def run(self, clients: int, total: int) -> float:
        """So many requests in all: the seconds that they took."""
        return crowd(clients, total, self.one, seed=total)


def told(ask: Ask, found: Any) -> bool:
    """Whether a bad request got one line."""
    line = found["sides"][0]["error"] if ask.kind == "recipe" else found.get("error")
    return bool(line) and "\n" not in line


def page(found: dict[str, Any]) -> str:
    """The figures as a table."""
    about = f"{found['machine']}, {found['cores']} of {found['of']} cores, {found['threads']} threads, torch {found['torch']}"
    lines = [about, "", "| | |", "| --- | --- |"]
    for key in (
        "load",
        "requests",
        "clients",
        "seconds",
        "MB before",
        "MB half way",
        "MB after",
        "seconds to start",
        "seconds to stop",
        "exit code",
    ):
        lines.append(f"| {key} | {round(found[key], 1)} |")
    lines.append(f"| answers | {', '.join(f'{key}: {count}' for key, count in found['answers'].items())} |")
    lines += ["", "| request | how many | median s | slowest s |", "| --- " * 4 + "|"]
    lines += [
        f"| {kind} | {len(times)} | {np.median(times):.2f} | {max(times):.2f} |" for kind, times in sorted(found["times"].items())
    ]
    return "\n".join([*lines, "", f"lost answers: {len(found['lost'])}; wrong answers: {len(found['wrong'])}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    server = Server("app", "--port", "0")
    try:
        wanted = {}
        for ask in good():
            status, content = send(server.port, ask)
            if status != 200:
                raise RuntimeError(f"{ask.path}: {status} {content[:300]!r}")
            wanted[ask] = read(ask, content)
        crowd = Crowd(server.port, wanted)
        crowd.run(given.clients, given.requests // 10)  # the allocator's pools fill up with so many clients
        crowd.tally = tally = Tally()
        memory, half = [server.megabytes()], given.requests // 2
        seconds = 0.0
        for count in (half, given.requests - half):
            seconds += crowd.run(given.clients, count)
            memory.append(server.megabytes())
        code, stop = server.stop(signal.SIGINT)
    finally:
        server.kill()
    found: dict[str, Any] = {
        **machine(), "load": busy(),
        "requests": given.requests, "clients": given.clients, "seconds": seconds,
        **dict(zip(("MB before", "MB half way", "MB after"), memory, strict=True)), "answers": dict(sorted(tally.answers.items())),
        "seconds to start": server.started, "seconds to stop": stop, "exit code": code, "times": tally.seconds,
        "lost": tally.lost, "wrong": tally.wrong,
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
