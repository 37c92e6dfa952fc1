"""What a pruned vLLM server does about bad pictures, clients that hang up, a killed worker, and SIGTERM in the middle of requests.

    python benchmarks/serving_faults.py llava-hf/llava-1.5-7b-hf --recipe fastervlm:tokens=64 --out FILE.json

After each trouble four good requests have to be answered as they were in the beginning. The server is then killed and started once more, and
the answers of the second one have to be the same. What follows "--" goes to the servers; `benchmarks/serving.py` starts them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image
from serving import CHAT, PATIENCE, QUESTION, Server, chat, data_url, free_port, machine, noisy, running, said, vllm
from serving_vit import bomb

GOOD = 4
"""Good requests that are compared."""
LONG = 400
"""Tokens of an answer that somebody does not wait for."""


@dataclass(frozen=True)
class Trouble:
    """What was done, what came back, seconds until then, whether good requests had their right answers after it (None: no server was left), MiB
    that the server grew by."""

    what: str
    came: str
    seconds: float
    right: bool | None
    grown: float


def picture_url(content: bytes) -> str:
    return "data:image/png;base64," + b64encode(content).decode()


def bad_pictures(side: int) -> dict[str, str]:
    """Name -> data URL."""
    whole = noisy(1, side)
    head, _, content = whole.partition(",")
    flat = Image.new("RGB", (side, side), "red")
    return {
        "a JPEG cut in half": f"{head},{content[: len(content) // 8 * 4]}",
        "a PNG cut behind its header": data_url(flat)[:100],
        "a PNG of 100 KB that is 900 million pixels large": picture_url(bomb()),
        "a PNG of 100 million pixels": data_url(Image.new("L", (10_000, 10_000))),
        "text instead of a picture": picture_url(b"no picture at all"),
        "not base64": "data:image/png;base64,%%%",
        "an empty file": picture_url(b""),
        "one pixel": data_url(Image.new("RGB", (1, 1))),
        "4,000 pixels wide and 2 high": data_url(Image.new("RGB", (4000, 2))),
    }


class Trial:
    """Servers of one model and recipe, and the answers to good requests that they have to give."""

    def __init__(self, given: argparse.Namespace, options: list[str]) -> None:
        self.given, self.options, self.troubles = given, options, list[Trouble]()
        self.expected: list[str] = []

    def answers(self, server: Server) -> list[str]:
        bodies = [chat([noisy(seed, self.given.side), QUESTION], self.given.new) for seed in range(GOOD)]
        found = [server.post(one).json() for one in bodies]
        return [one["choices"][0]["message"]["content"] if "choices" in one else str(one) for one in found]

    def right(self, server: Server) -> bool:
        return self.answers(server) == self.expected

    def note(self, server: Server, what: str, do: Callable[[], str]) -> None:
        before, start = server.memory(), time.perf_counter()
        came = do()
        seconds = time.perf_counter() - start
        right = self.right(server)
        self.troubles.append(Trouble(what, came, seconds, right, (server.memory() - before) / 2**20))
        print(self.troubles[-1], flush=True)

    def start(self, do: Callable[[Server], None]) -> float:
        """Seconds until the server answered."""
        port, start = free_port(), time.perf_counter()
        with running(vllm(self.given.model, self.given.recipe, port, self.options), port) as server:
            seconds = time.perf_counter() - start
            do(server)
        return seconds

    def first(self, server: Server) -> None:
        """Bad pictures, clients that hang up, a killed worker."""
        self.answers(server)  # warm
        self.expected = self.answers(server)
        for name, url in bad_pictures(self.given.side).items():
            self.note(server, name, lambda url=url: status(server.post(chat([url, QUESTION], self.given.new))))
        for name, part in {"before the answer begins": False, "behind the first tokens of an answer": True}.items():
            self.note(server, f"{self.given.clients} clients hang up {name}", lambda part=part: self.hang_up(server, part))
        self.end(server, "kill -9 of the worker", lambda: os.kill(worker(server).pid, signal.SIGKILL))

    def second(self, server: Server) -> None:
        """The same answers as before, and SIGTERM."""
        self.note(server, "a new server", lambda: "ready")
        self.end(server, "SIGTERM to the server", server.process.terminate)

    def hang_up(self, server: Server, part: bool) -> str:
        """Clients that close their connection; what comes back is when the engine has put their requests aside."""

        def one(seed: int) -> None:
            body = chat([noisy(100 + seed, self.given.side), QUESTION], LONG, ignore_eos=True, stream=True)
            if not part:
                with suppress(httpx.ReadTimeout):
                    server.client.post(CHAT, json=body, timeout=httpx.Timeout(PATIENCE, read=0.05))
                return
            with server.client.stream("POST", CHAT, json=body) as answer:
                for number, _ in enumerate(answer.iter_lines()):
                    if number > 4:
                        return

        with ThreadPoolExecutor(self.given.clients) as clients:
            list(clients.map(one, range(self.given.clients)))
        start = time.perf_counter()
        while under_way(server):
            time.sleep(0.05)
        return f"nothing under way {time.perf_counter() - start:.2f} s after the last of them"

    def end(self, server: Server, what: str, do: Callable[[], None]) -> None:
        """Do what ends a server while clients wait for long answers; what they get, and when the server has gone."""
        came: list[str] = []

        def one(seed: int) -> None:
            try:
                came.append(status(server.post(chat([noisy(200 + seed, self.given.side), QUESTION], LONG, ignore_eos=True))))
            except httpx.HTTPError as error:
                came.append(f"connection ended ({type(error).__name__})")

        clients = [threading.Thread(target=one, args=(seed,)) for seed in range(self.given.clients)]
        for client in clients:
            client.start()
        while under_way(server) < self.given.clients and any(client.is_alive() for client in clients):
            time.sleep(0.05)
        family, start = server.processes(), time.perf_counter()
        do()
        for client in clients:
            client.join()
        known = time.perf_counter() - start
        code = server.process.wait(PATIENCE)
        gone = time.perf_counter() - start
        left = [one for one in psutil.wait_procs(family, 30)[1] if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        told = "; ".join(f"{count} clients: {text}" for text, count in Counter(came).items())
        text = f"{told}; all knew after {known:.1f} s; exit code {code} after {gone:.1f} s; {len(left)} processes left"
        self.troubles.append(Trouble(what, text, gone, None, 0.0))
        print(self.troubles[-1], flush=True)


def status(answer: httpx.Response) -> str:
    """HTTP status, and the reason where it is no success."""
    if answer.status_code == 200:
        return "HTTP 200"
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.text
    return f"HTTP {answer.status_code}: {' '.join(str(said).split())[:150]}"


def under_way(server: Server) -> int:
    """Requests that the engine has."""
    lines = server.client.get("/metrics").text.splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(names))


def worker(server: Server) -> psutil.Process:
    """The process that runs the model."""
    named = {one: " ".join(one.cmdline()) for one in server.processes()}
    found = [one for kind in ("VLLM::Worker", "VLLM::EngineCore") for one, name in named.items() if name.startswith(kind)]
    if not found:
        raise RuntimeError(f"none of {list(named.values())} is a worker or an engine of vLLM")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--side", type=int, default=672, help="pixels")
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the page goes beside it")
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    given, options = parser.parse_args(own), sys.argv[len(own) + 2 :]
    trial = Trial(given, options)
    starts = [trial.start(trial.first), trial.start(trial.second)]
    where: dict[str, Any] = {name: getattr(given, name) for name in ("model", "recipe", "clients", "side", "new")}
    where |= {"machine": machine(), "together": False, "options": options, "starts": [round(one, 1) for one in starts]}
    given.out.write_text(json.dumps({**where, "rows": [asdict(one) for one in trial.troubles]}, indent=1) + "\n", encoding="utf-8")
    given.out.with_suffix(".md").write_text(page(where, trial.troubles), encoding="utf-8")


def page(where: dict[str, Any], troubles: list[Trouble]) -> str:
    lines = ["| what was done | what came back | seconds | good requests after it | MiB more |", "| --- | --- | --- | --- | --- |"]
    right = {True: "right", False: "WRONG", None: "no server left"}
    lines += [f"| {one.what} | {one.came} | {one.seconds:.1f} | {right[one.right]} | {one.grown:.0f} |" for one in troubles]
    first, second = where["starts"]
    head = f"Recipe `{where['recipe']}`. The first server answered after {first} s, the second after {second} s. {said(where)}"
    return f"# vLLM with a pruned model, in trouble\n\n{head}\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
