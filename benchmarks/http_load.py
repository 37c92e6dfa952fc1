"""What the benchmarks of servers share: a server as a process of its own, clients that ask it at once, and the worst of their requests."""

from __future__ import annotations

import os
import platform
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 300
"""Seconds after which an answer is lost and an end has failed."""


class Server:
    """A verb of `sparsight` that says the address it listens on, as a process of its own."""

    def __init__(self, *words: str) -> None:
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparsight", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stderr is not None
        said = []
        for line in iter(self.process.stderr.readline, ""):
            said.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port, self.started = int(found[1]), time.perf_counter() - start
                threading.Thread(target=self.process.stderr.read, daemon=True).start()  # so that its pipe never fills up
                return
        self.process.wait()
        raise RuntimeError("".join(said))

    def megabytes(self, peak: bool = False) -> float:
        """Memory of the process now, or the most it has had."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+)", text)[1]) / 1000  # type: ignore[index]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Exit code after a signal, and seconds until the end."""
        start = time.perf_counter()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE), time.perf_counter() - start

    def kill(self) -> None:
        """kill -9, if it still runs."""
        self.process.kill()
        self.process.wait()


def bomb(side: int) -> bytes:
    """A small PNG of side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, rows = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def hang_up(port: int, path: str, body: bytes, choice: random.Random) -> None:
    """Send some or all of a request and go."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as line:
        line.sendall((head + body)[: choice.choice([10, len(body) // 2, len(head) + len(body)])])


def crowd(clients: int, total: int, work: Callable[[random.Random], None], seed: int = 0) -> float:
    """Do a piece of work `total` times, from so many threads: the seconds that it took."""
    left, lock = iter(range(total)), threading.Lock()

    def one(number: int) -> None:
        choice = random.Random(1000 * seed + number)
        while True:
            with lock:
                if next(left, None) is None:
                    return
            work(choice)

    start = time.perf_counter()
    together(clients, one)
    return time.perf_counter() - start


def together(times: int, work: Callable[[int], None]) -> None:
    """Call with 0, 1, ... at once, each in a thread of its own, until all are done."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def machine() -> dict[str, Any]:
    """The processor, the cores that this process and what it starts may use, and its version of torch."""
    import torch

    names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    cores = sorted(os.sched_getaffinity(0))
    return {
        "machine": names[0] if names else platform.machine(), "cores": len(cores), "of": os.cpu_count(), "torch": torch.__version__,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or len(cores)),
    }  # fmt: skip


def busy() -> float:
    """How many processes have wanted a core, over the last minute."""
    return round(os.getloadavg()[0], 1)
