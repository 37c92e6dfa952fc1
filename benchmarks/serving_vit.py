"""A server under good and bad requests from several clients: is any answer lost or wrong, does memory stay flat, how fast is it?

    python benchmarks/serving_vit.py --out benchmarks/results/serving_vit_cpu.json

`sparsight serve` runs as a process of its own, on a port of 127.0.0.1, with the embedded demo model under two recipes and unpruned. First every
recipe gets good requests, for its throughput, all recipes in turn. Then --requests requests come from --clients clients, three in ten of them bad: text,
truncated pictures, decompression bombs, uploads that are too long, recipes that are not served, nothing at all, clients that hang up. Every
prediction is compared with that of the pruned model called directly. In the end the server is told to stop, and --starts times started and
stopped, --at-once at the same time, half of them by SIGTERM and half by kill -9, each in the middle of requests. The file is written anew after
every phase and every start; with --phases only some are run, and the file keeps what it has of the others.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import math
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from http_load import PATIENCE, Server, bomb, busy, crowd, hang_up, machine, together

import sparsight
from sparsight.data.reading import decode
from sparsight.load.models import demo_images, load
from sparsight.prune import family_of

MODEL = "demo"
RECIPES = ("col_ln:keep=0.7,layers=3/6/9", "col_ln:keep=0.5,layers=0/3/6")
UNPRUNED = "unpruned"
LIMIT = 2_000_000
"""Bytes of an upload that the server allows."""
WARM = 60
"""Requests before memory is first read."""
PER_RECIPE, TURNS = 40, 4
"""Good requests for the throughput of each recipe, and how many times."""
PHASES = ["throughput", "storm", "starts"]
UNDER_WAY = 4
"""Requests under way when a server is ended."""
NEAR = 1e-4
"""Largest difference of a probability from the one computed directly."""


@dataclass(frozen=True)
class Expected:
    """What the model says about an image: class probabilities [K] and the kept patches."""

    chances: torch.Tensor
    kept: set[int]


@dataclass
class Tally:
    """What became of requests."""

    answers: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, answer: str) -> None:
        """One more answer to a request of that kind; hold the lock."""
        self.answers.setdefault(kind, Counter())[answer] += 1

    def clear(self) -> None:
        self.answers.clear()
        self.seconds.clear()


def direct(files: list[bytes]) -> dict[tuple[str, int], Expected]:
    """The answers of the model itself, by recipe and number of the image."""
    loaded = load(MODEL)
    images = torch.stack([loaded.transform(decode(io.BytesIO(file))) for file in files])
    found, patches = {}, math.prod(family_of(loaded.model).grid)
    for recipe in (*RECIPES, UNPRUNED):
        with torch.no_grad():
            if recipe == UNPRUNED:
                logits = loaded.model(images)
                kept = [list(range(patches))] * len(images)
            else:
                with sparsight.prune(loaded.model, recipe) as handle:
                    logits, kept = loaded.model(images), handle.sources()[-1].keep.tolist()
        for number, (row, ids) in enumerate(zip(logits.softmax(dim=-1), kept, strict=True)):
            found[recipe, number] = Expected(row, set(ids))
    return found


def serve(engine: str, port: int = 0) -> Server:
    """`sparsight serve` as a process of its own."""
    words = [word for recipe in RECIPES for word in ("--recipe", recipe)]
    limits = ["--max-upload", str(LIMIT / 2**20), "--max-pixels", "4", "--queue", "64", "--timeout", "120"]
    return Server("serve", MODEL, *words, *limits, "--engine", engine, "--port", str(port))


def ask(port: int, query: str, body: bytes) -> tuple[int, Any]:
    """Status and JSON of one prediction."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", f"/predict?{query}", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


class Client:
    """Sends requests of all kinds and notes what comes back."""

    def __init__(self, port: int, files: list[bytes], expected: dict[tuple[str, int], Expected], tally: Tally) -> None:
        self.port, self.files, self.expected, self.tally = port, files, expected, tally
        self.bomb = bomb(30_000)

    def good(self, choice: random.Random, recipe: str | None = None) -> None:
        """One image under one recipe, checked against the model's own answer."""
        number = choice.randrange(len(self.files))
        recipe = recipe or choice.choice([*RECIPES, UNPRUNED])
        start = time.perf_counter()
        answer = self.send(f"recipe={recipe}&top=1000", self.files[number], 200, "good", f"{recipe} of image {number}")
        if answer is None:
            return
        wanted = self.expected[recipe, number]
        chances = torch.zeros_like(wanted.chances)
        for one in answer["classes"]:
            chances[one["index"]] = one["probability"]
        same = set(answer["tokens"]["kept"]) == wanted.kept and float((chances - wanted.chances).abs().max()) < NEAR
        with self.tally.lock:
            self.tally.seconds.append(time.perf_counter() - start)
            if not same:
                self.tally.wrong.append(f"{recipe} of image {number}")

    def bad(self, choice: random.Random) -> None:
        """A request that deserves a refusal, or that is given up."""
        file = choice.choice(self.files)
        kinds: dict[str, tuple[str, bytes, int]] = {
            "text": ("keep=0.7", b"this is no image\n" * 50, 400),
            "truncated": ("keep=0.7", file[: len(file) // 2], 400),
            "bomb": ("keep=0.5", self.bomb, 400),
            "too long": ("keep=0.5", bytes(LIMIT + 1 + choice.randrange(LIMIT)), 413),
            "not served": ("recipe=evit:keep=0.3", file, 400),
            "nothing": ("", b"", 400),
        }
        kind = choice.choice([*kinds, "hang-up"])
        if kind == "hang-up":
            hang_up(self.port, "/predict", file, choice)
            with self.tally.lock:
                self.tally.note(kind, "hung up")
        else:
            query, body, status = kinds[kind]
            self.send(query, body, status, kind)

    def send(self, query: str, body: bytes, status: int, kind: str, what: str = "") -> Any:
        """The answer, None where it is not the one that is due."""
        what = what or kind
        try:
            found, answer = ask(self.port, query, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            with self.tally.lock:
                self.tally.lost.append(f"{what}: {type(error).__name__} {error}")
            return None
        with self.tally.lock:
            self.tally.note(kind, str(found))
            if found != status or (found != 200 and not answer.get("error")):
                self.tally.wrong.append(f"{what}: {found} {str(answer)[:200]}")
        return answer if found == status else None


def throughput(client: Client, clients: int, turns: int, each: int) -> list[dict[str, Any]]:
    """Images per second of every recipe alone, of `each` requests a turn; all in turn, so that what else the machine does meets them alike."""
    log: dict[str, tuple[list[float], list[float]]] = {recipe: ([], []) for recipe in (UNPRUNED, *RECIPES)}
    for _ in range(turns):
        for recipe, (rates, waits) in log.items():
            client.tally.seconds.clear()
            work = partial(client.good, recipe=recipe)
            rates.append(each / crowd(clients, each, work))
            waits += client.tally.seconds
    rows = []
    for recipe, (rates, waits) in log.items():
        gain = np.median(np.array(rates) / np.array(log[UNPRUNED][0]))
        rows.append(
            {"recipe": recipe, "images per second": float(np.median(rates)), "beside unpruned": float(gain), **latencies(waits)}
        )
        print(rows[-1], flush=True)
    return rows


def latencies(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    found = np.percentile(seconds, [50, 95, 99]) if seconds else [float("nan")] * 3
    return {f"p{share} ms": round(1000 * float(value), 1) for share, value in zip((50, 95, 99), found, strict=True)}


def storm(server: Server, client: Client, clients: int, total: int) -> dict[str, Any]:
    """Good and bad requests, memory before and after them."""

    def work(choice: random.Random) -> None:
        client.bad(choice) if choice.random() < 0.3 else client.good(choice)

    crowd(clients, WARM, work)
    before, load = server.megabytes(), [busy()]
    client.tally.clear()
    seconds = crowd(clients, total // 2, work, seed=1)
    middle = server.megabytes()
    load.append(busy())
    seconds += crowd(clients, total - total // 2, work, seed=2)
    load.append(busy())
    return {
        "requests": total, "clients": clients, "seconds": seconds, "requests per second": total / seconds, **latencies(client.tally.seconds),
        "answers": {kind: dict(found) for kind, found in sorted(client.tally.answers.items())}, "load": load, "MB before": before, "MB half way": middle,
        "MB after": server.megabytes(), "MB peak": server.megabytes(peak=True),
    }  # fmt: skip


@dataclass
class Turns:
    """What became of servers that were started and stopped, and of four requests that were under way then."""

    started: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    killed: int = 0
    answered: int = 0
    kept: int = 0
    broken: int = 0
    failed: list[str] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, engine: str, port: int, file: bytes, kill: bool) -> None:
        """Start a server, ask it, and end it in the middle of four requests: by SIGTERM, or by kill -9."""
        server = serve(engine, port)
        client = Client(port, [file], {}, Tally())
        under_way = [threading.Thread(target=client.send, args=("keep=0.7", file, 200, "under way")) for _ in range(UNDER_WAY)]
        try:
            answered = ask(port, "keep=0.7", file)[0] == 200
            for thread in under_way:
                thread.start()
            while active(port) + sum(not thread.is_alive() for thread in under_way) < UNDER_WAY:
                time.sleep(0.01)
            code, took = (0, 0.0) if kill else server.stop()
        finally:
            server.kill()
        for thread in under_way:
            thread.join()
        found = client.tally.answers.get("under way", Counter())["200"]
        with self.lock:
            self.started.append(server.started)
            self.answered += answered
            self.killed += kill
            self.load.append(busy())
            if kill:
                self.broken += UNDER_WAY - found
            else:
                self.stopped.append(took)
                self.kept += found
                self.failed += [f"exit code {code}"] if code else []
                self.failed += [f"lost: {lost}" for lost in client.tally.lost]

    def row(self, at_once: int) -> dict[str, Any]:
        return {
            "starts": len(self.started), "at once": at_once, "answered after the start": self.answered,
            "seconds to start": median(self.started), "seconds to stop": median(self.stopped),
            "stopped by SIGTERM": len(self.stopped), "under way then": UNDER_WAY * len(self.stopped), "of these answered": self.kept,
            "killed by kill -9": self.killed, "requests broken by it": self.broken, "load": median(self.load), "failed": self.failed,
        }  # fmt: skip


def median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def active(port: int) -> int:
    """Requests that the server has under way."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/health")
        return int(json.loads(connection.getresponse().read())["active"])
    finally:
        connection.close()


def starts(engine: str, times: int, at_once: int, files: list[bytes], save: Callable[[dict[str, Any]], None]) -> None:
    """Start and stop again and again, `at_once` servers at a time, each on a port that it keeps; every other one is killed. `save` is told
    what is known after every turn."""
    turns = Turns()

    def work(first: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        for turn in range(first, times, at_once):
            try:
                turns.one(engine, port, files[0], kill=bool((turn // at_once) % 2))
            except Exception as error:  # whatever a server that does not start leads to
                with turns.lock:
                    turns.failed.append(f"{type(error).__name__}: {error}")
            with turns.lock:
                save(turns.row(at_once))

    together(at_once, work)


def page(found: dict[str, Any]) -> str:
    """The figures as tables."""
    about = (
        f"{found['machine']}, {found['cores']} of {found['of']} cores, {found['threads']} threads, torch {found['torch']}, "
        f"engine {found['engine']}"
    )
    lines = [f"{about}. {found['note']}".strip(), ""]
    lines += ["| recipe | images per second | beside unpruned | p50 ms | p95 ms | p99 ms |", "| --- " * 6 + "|"]
    for row in found.get("throughput", []):
        values = " | ".join(f"{value:.2f}" if value < 10 else f"{value:.1f}" for name, value in row.items() if name != "recipe")
        lines.append(f"| {row['recipe']} | {values} |")
    for name in ("storm", "starts", "starts before"):
        if found.get(name):
            lines += ["", f"| {name} | |", "| --- | --- |"]
            lines += [f"| {key} | {shown(value)} |" for key, value in found[name].items()]
    return "\n".join([*lines, "", f"lost answers: {len(found['lost'])}; wrong answers: {len(found['wrong'])}", ""])


def shown(value: Any) -> str:
    """A figure in a table."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return str(round(value, 2) if isinstance(value, float) else value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--per-recipe", type=int, default=PER_RECIPE, help="good requests for the throughput of each recipe, in each turn"
    )
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--starts", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="servers that start and stop at the same time")
    parser.add_argument("--note", default="", help="what else the reader should know, such as what the machine did meanwhile")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    given = parser.parse_args()
    files = [path.read_bytes() for path in sorted(demo_images().rglob("*.jpg"))]
    tally = Tally()
    before = json.loads(given.out.read_text()) if given.out.exists() and given.phases != PHASES else {}
    tally.lost, tally.wrong = before.get("lost", []), before.get("wrong", [])
    found: dict[str, Any] = {
        **before, **machine(), "engine": given.engine, "lost": tally.lost,
        "wrong": tally.wrong, "note": given.note,
    }  # fmt: skip

    def save(**phase: Any) -> None:
        found.update(phase)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(page(found))

    if {"throughput", "storm"} & set(given.phases):
        server = serve(given.engine)
        try:
            client = Client(server.port, files, direct(files), tally)
            if "throughput" in given.phases:
                rows = throughput(client, given.clients, given.turns, given.per_recipe)
                save(**{"throughput": rows, "turns": given.turns, "requests a turn": given.per_recipe})
            if "storm" in given.phases:
                save(storm=storm(server, client, given.clients, given.requests))
            code, seconds = server.stop()
            save(**{"exit code": code, "seconds to stop": seconds})
        finally:
            server.kill()
    if given.starts and "starts" in given.phases:
        starts(given.engine, given.starts, given.at_once, files, lambda row: save(starts=row))
    print(page(found))


if __name__ == "__main__":
    main()
