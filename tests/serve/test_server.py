"""A real server on the loopback: answers, refusals, hang-ups, limits, its end."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from loopback import NAMES, RECIPES, SIDE, bomb, form, make_vit, picture, running
from PIL import Image

import sparsight
from sparsight import __version__

ALL = (*RECIPES, "unpruned")


@pytest.fixture(scope="module")
def expected(vit):
    """What the model says when it is called directly: class probabilities and kept sets, by recipe and picture."""
    images = torch.stack([vit.transform(Image.open(io.BytesIO(picture(number))).convert("RGB")) for number in range(8)])
    found = {}
    for recipe in ALL:
        with torch.no_grad():
            if recipe == "unpruned":
                chances, kept = vit.model(images).softmax(dim=-1), [range((SIDE // 8) ** 2)] * len(images)
            else:
                with sparsight.prune(vit.model, recipe) as handle:
                    chances, kept = vit.model(images).softmax(dim=-1), handle.sources()[-1].keep.tolist()
        found[recipe] = [(dict(zip(NAMES, row, strict=True)), set(ids)) for row, ids in zip(chances.tolist(), kept, strict=True)]
    return found


def right(answer, wanted):
    """Whether a prediction is the one that was computed directly."""
    chances, kept = wanted
    found = {one["name"]: one["probability"] for one in answer["classes"]}
    ranks = [one["probability"] for one in answer["classes"]]
    return (
        found.keys() == chances.keys()
        and all(abs(found[name] - chances[name]) < 1e-5 for name in chances)
        and ranks == sorted(ranks, reverse=True)
        and set(answer["tokens"]["kept"]) == kept
    )


def test_predict(client, expected):
    status, answer = client.ask("/predict", picture(0))
    assert status == 200
    assert answer.keys() == {"recipe", "classes", "tokens"}
    assert answer["recipe"] == RECIPES[0]
    assert answer["tokens"]["grid"] == [8, 8]
    assert answer["tokens"]["left"] == [32, 16]
    assert len(answer["tokens"]["kept"]) == 16
    assert right(answer, expected[RECIPES[0]][0])
    body, headers = form(picture(0))
    assert client.ask("/predict", body, headers) == (status, answer)
    assert [one["index"] for one in client.ask("/predict?top=2", picture(0))[1]["classes"]] == [
        one["index"] for one in answer["classes"][:2]
    ]


def test_embed(client, vit):
    status, answer = client.ask("/embed?recipe=unpruned", picture(3))
    image = vit.transform(Image.open(io.BytesIO(picture(3))).convert("RGB"))
    with torch.no_grad():
        wanted = vit.model.forward_head(vit.model.forward_features(image.unsqueeze(0)), pre_logits=True)[0]
    assert status == 200
    assert torch.allclose(torch.tensor(answer["embedding"]), wanted, atol=1e-5)
    assert len(client.ask("/embed?keep=0.5", picture(3))[1]["tokens"]["kept"]) == 16


def test_recipes_mixed_by_several_clients(client, expected, together):
    """Every neighbour may have another recipe, by name or by keep."""

    def work(offset):
        wrong = []
        for turn in range(8):
            number, recipe = (offset + turn) % 8, ALL[(offset * 3 + turn) % 4]
            status, answer = client.ask(f"/predict?recipe={recipe}", picture(number))
            if not (status == 200 and answer["recipe"] == recipe and right(answer, expected[recipe][number])):
                wrong.append((recipe, number, status, answer))
        return wrong

    assert together(*(partial(work, offset) for offset in range(6))) == [[]] * 6


def test_a_recipe_that_is_not_served(client):
    for query in ("recipe=evit:keep=0.3", "keep=0.3", "recipe=dpc_knn"):
        status, answer = client.ask(f"/predict?{query}", picture(0))
        assert status == 400
        assert answer["served"] == [*ALL]
        assert all(recipe in answer["error"] for recipe in ALL)


two_files, form_header = form(picture(0), files=2)
BAD = [
    ("text", b"not an image", {}, 400, "not an image"),
    ("truncated", picture(0)[:-300], {}, 400, "truncated"),
    ("bomb", bomb(), {}, 400, "exceeds limit"),
    ("many pixels", bomb(4000, 4000), {}, 400, "over 1000000 in all"),
    ("nothing", b"", {}, 400, "no image was sent"),
    ("too long", bytes(300_001), {}, 413, "more than the 300000 bytes"),
    ("far too long", bytes(3_000_000), {}, 413, "more than the 300000 bytes"),
    ("too long a form", *form(bytes(310_000)), 413, "more than the 300000 bytes"),
    ("two files", two_files, form_header, 400, "Too many files"),
    ("no file", two_files.replace(b'; filename="a.png"', b""), form_header, 400, "the form has no file"),
    ("no form", picture(0), form_header, 400, "/predict"),
    ("no boundary", picture(0), {"Content-Type": "multipart/form-data"}, 400, "boundary"),
    ("empty file", *form(b""), 400, "no image was sent"),
]


@pytest.mark.parametrize(("body", "headers", "status", "words"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_uploads(client, body, headers, status, words):
    found, answer = client.ask("/predict", body, headers)
    assert found == status
    assert words in answer["error"]
    assert client.ask("/predict", picture(0))[0] == 200


def test_too_long_in_chunks_of_unknown_number(client):
    """Without a Content-Length; and with one, from a client that asks first and is spared the upload."""
    status, answer = client.ask("/predict", (bytes(10_000) for _ in range(50)))
    assert (status, answer["error"]) == (413, "the upload has more than the 300000 bytes that are allowed")
    with client.connect() as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\nExpect: 100-continue\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/predict", 405, "Method Not Allowed"), ("POST", "/nothing", 404, "Not Found"), ("POST", "/health", 405, "Not Allowed"),
        ("POST", "/predict?keep=much", 400, "keep=much: "), ("POST", "/predict?top=0", 400, "top=0: "),
    ],
)  # fmt: skip
def test_wrong_requests(client, method, path, status, words):
    found, answer = client.ask(path, picture(0), method=method)
    assert (found, list(answer)) == (status, ["error"])
    assert words in answer["error"]


def test_garbage_instead_of_http(client):
    for junk in (b"\x00\xff\x16\x03\x01" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        with client.connect() as line:
            line.sendall(junk)
            assert line.recv(100).startswith(b"HTTP/1.1 4")
    assert client.ask("/health")[0] == 200


def test_health_metrics_and_description(client):
    status, health = client.ask("/health")
    assert status == 200
    assert health == {
        "status": "ok", "model": "tiny", "engine": "eager", "recipes": [*ALL], "active": 0, "version": __version__,
    }  # fmt: skip
    before = client.metric("sparsight_requests_total", endpoint="/predict", recipe=RECIPES[1], status="200")
    images = client.metric("sparsight_batch_images_sum", recipe=RECIPES[1])
    assert client.ask(f"/predict?recipe={RECIPES[1]}", picture(0))[0] == 200
    assert client.metric("sparsight_requests_total", endpoint="/predict", recipe=RECIPES[1], status="200") == before + 1
    assert client.metric("sparsight_batch_images_sum", recipe=RECIPES[1]) == images + 1
    assert client.metric("process_resident_memory_bytes") > 1e6
    _, description = client.ask("/openapi.json")
    assert set(description["paths"]) == {"/predict", "/embed", "/health", "/metrics"}
    assert {"image/*", "multipart/form-data"} == set(description["paths"]["/predict"]["post"]["requestBody"]["content"])


def test_the_page_needs_no_other_host(client):
    status, page = client.ask("/docs")
    assert status == 200
    sources = re.findall(r"""(?:src|href)=["']([^"']+)|url: ["']([^"']+)""", page)
    assert sources
    for source in ("".join(pair) for pair in sources):
        assert source.startswith("/"), source
        assert client.ask(source)[0] == 200


def test_many_images_make_one_batch(gated, together):
    loaded, gate = gated
    with running(loaded, batch_size=8, max_wait=0.0) as client:
        gate.armed = True
        first = threading.Thread(target=client.ask, args=("/predict", picture(0)))
        first.start()
        assert gate.arrived.acquire(timeout=30)
        jobs = [partial(client.ask, "/predict", picture(number)) for number in range(5)]
        threading.Timer(0.5, gate.door.set).start()
        assert [status for status, _ in together(*jobs)] == [200] * 5
        first.join()
        assert client.metric("sparsight_batch_images_count", recipe=RECIPES[0]) == 2
        assert client.metric("sparsight_batch_images_sum", recipe=RECIPES[0]) == 6


def test_hang_ups_cost_nothing(gated):
    """In the middle of an upload, while waiting, and while the engine works."""
    loaded, gate = gated
    whole = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(picture(0)) + picture(0)
    with running(loaded) as client:
        for part in (whole[:30], whole[:-100]):
            with client.connect() as line:
                line.sendall(part)
                time.sleep(0.05)
        client.until("sparsight_requests_total", 1, status="499")
        gate.armed = True
        lines = []
        for waiting in range(3):
            lines.append(client.connect())
            lines[-1].sendall(whole)
            if waiting == 0:
                assert gate.arrived.acquire(timeout=30)
        client.until("sparsight_waiting_images", 2)
        for line in lines:
            line.close()
        client.until("sparsight_requests_total", 4, status="499")
        assert client.metric("sparsight_waiting_images") == 0
        assert client.ask("/health")[1]["active"] == 0
        gate.armed = False
        gate.door.set()
        assert client.ask("/predict", picture(0))[0] == 200
        assert client.metric("sparsight_batch_images_sum") == 2, "what was in the engine, and the last one"


def test_a_full_queue_and_answers_that_take_too_long(gated, together):
    loaded, gate = gated
    with running(loaded, queue=3, timeout=1.0) as client:
        gate.armed = True
        jobs = [partial(client.ask, "/predict", picture(number)) for number in range(5)]
        found = together(*jobs)
        assert sorted(status for status, _ in found) == [503, 503, 504, 504, 504]
        assert {answer["error"] for status, answer in found if status == 503} == {"3 requests are under way; try again later"}
        assert {answer["error"] for status, answer in found if status == 504} == {"no answer within 1 s"}
        gate.armed = False
        gate.door.set()
        assert client.ask("/predict", picture(0))[0] == 200


def test_an_upload_that_takes_too_long(vit):
    with running(vit, (), timeout=0.2) as client, client.connect() as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert line.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert client.ask("/predict", picture(0))[0] == 200


def test_a_forward_that_fails(vit):
    loaded = make_vit()
    hook = loaded.model.head.register_forward_hook(lambda _model, _given, logits: logits * float("nan"))
    with running(loaded, ()) as client:
        assert client.ask("/predict", picture(0)) == (500, {"error": "the model makes no finite numbers of this image"})
        assert client.ask("/embed", picture(0))[0] == 200
    hook.remove()


def test_requests_under_way_are_answered_at_the_end(gated):
    loaded, gate = gated
    found = []
    with running(loaded) as client:
        gate.armed = True
        asking = [
            threading.Thread(target=lambda: found.append(client.ask("/predict", picture(0)))) for _ in range(3)
        ]  # fmt: skip
        for thread in asking:
            thread.start()
        assert gate.arrived.acquire(timeout=30)
        client.until("sparsight_active_requests", 3)
        client.server.should_exit = True
        time.sleep(0.3)
        with pytest.raises(OSError):
            client.ask("/health")
        gate.door.set()
        for thread in asking:
            thread.join(30)
    assert [status for status, _ in found] == [200] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.product)])
def test_the_program(number, tmp_path):
    """From its start to a signal in the middle of requests: every request that was taken is answered, and the exit code is 0."""
    from safetensors.torch import save_file

    path = tmp_path / "tiny.safetensors"
    save_file(__import__("timm").create_model("test_vit", num_classes=3).state_dict(), path)
    words = [f"test_vit@{path}", "--recipe", "col_ln:keep=0.5,layers=1/3", "--port", "0", "--threads", "1"]
    program = subprocess.Popen(
        [sys.executable, "-m", "sparsight", "serve", *words], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    try:
        news = iter(program.stderr.readline, "")
        port = next(int(found[1]) for line in news if (found := re.search(r"http://127\.0\.0\.1:(\d+) ", line)))
        answered, refused = [], []

        def work():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            while True:
                try:
                    connection.request("POST", "/predict?keep=0.5", picture(0))
                except OSError:  # nobody listens any more
                    return
                try:
                    answer = connection.getresponse()
                    answered.append((answer.status, len(json.loads(answer.read())["tokens"]["kept"])))
                except (OSError, http.client.HTTPException):
                    refused.append(1)  # sent into a connection that was idle when the server closed it
                    return

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(answered) < 20:
            time.sleep(0.01)
        program.send_signal(number)
        assert program.wait(30) == 0
        for thread in threads:
            thread.join(30)
        assert set(answered) == {(200, 25)}
        assert len(refused) <= 3
        assert program.stderr.read().splitlines() == ["stopped; every request under way was answered"]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        program.kill()
        program.wait()
        program.stderr.close()
